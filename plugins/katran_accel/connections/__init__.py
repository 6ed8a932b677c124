# SPDX-License-Identifier: Apache-2.0
"""`nfcore connections`: searches the connection tables of a running balancer, and removes connections from them."""
