# SPDX-License-Identifier: Apache-2.0
"""The balancer's data plane, and the programs beside it, in plain Python: what a frame must come to."""
