# SPDX-License-Identifier: Apache-2.0
"""The version of the framework and of its hook API."""

__version__ = "0.1.0"
