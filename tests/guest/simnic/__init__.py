# SPDX-License-Identifier: Apache-2.0
"""A NIC with a table of flows, for the guest: README.md tells what it does."""
