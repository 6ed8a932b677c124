# SPDX-License-Identifier: Apache-2.0
"""The life of a flow, from the report to the rule and back."""
