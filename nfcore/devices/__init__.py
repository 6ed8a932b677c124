# SPDX-License-Identifier: Apache-2.0
"""One NIC: its state, its backends, the worker that waits for it."""
