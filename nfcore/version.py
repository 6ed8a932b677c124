# SPDX-License-Identifier: Apache-2.0
"""The version of nfcore; that of the hooks is `nfcore.api.hookspecs.API`."""

__version__ = "0.1.0"
