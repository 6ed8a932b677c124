# SPDX-License-Identifier: Apache-2.0
"""A marking strategy for nfcore: the upper bits of a mark show the owner of the VIP."""

from .plugin import TenantMarksPlugin

__all__ = ["TenantMarksPlugin"]
