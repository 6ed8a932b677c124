# SPDX-License-Identifier: Apache-2.0
"""my_description."""

from .plugin import MyNamePlugin

__all__ = ["MyNamePlugin"]
