# SPDX-License-Identifier: Apache-2.0
"""nfcore: network functions whose XDP fast path is driven by marks that the NIC sets in hardware."""

from .version import __version__

__all__ = ["__version__"]
