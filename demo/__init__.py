# SPDX-License-Identifier: Apache-2.0
"""The demo: a load balancer with an emulated NIC between network namespaces, and the proof that it works."""
