# SPDX-License-Identifier: Apache-2.0
"""Netlink encodings that pyroute2 lacks: the flower classifier and the actions of its filters."""
