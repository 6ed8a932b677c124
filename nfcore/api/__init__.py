# SPDX-License-Identifier: Apache-2.0
"""What a plugin sees of nfcore: the hooks, their values, and what a plugin is given."""
