# SPDX-License-Identifier: Apache-2.0
"""`nfcore top`: a live view of the daemon in a terminal."""
