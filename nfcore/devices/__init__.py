# SPDX-License-Identifier: Apache-2.0
"""One device: its backends, the worker that waits for its NIC, and what the engine knows of it."""
