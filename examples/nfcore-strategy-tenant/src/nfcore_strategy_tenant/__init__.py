# SPDX-License-Identifier: Apache-2.0
"""A marking strategy for nfcore: the upper bits of a mark tell who owns the VIP."""

from .plugin import TenantMarksPlugin

__all__ = ["TenantMarksPlugin"]
