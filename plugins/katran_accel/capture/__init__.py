# SPDX-License-Identifier: Apache-2.0
"""`nfcore capture`: samples of packets, each with its verdict and the reason."""
