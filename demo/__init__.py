# SPDX-License-Identifier: Apache-2.0
"""The demo: a load balancer behind an emulated NIC, in network namespaces, and the proof that it works."""
