# SPDX-License-Identifier: Apache-2.0
"""What a plugin uses of nfcore: the hooks, the types of their arguments and results, and the context of a run."""
