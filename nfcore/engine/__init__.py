# SPDX-License-Identifier: Apache-2.0
"""The life of a flow: reported by XDP, given a rule on the NIC, and at the end without one again."""
