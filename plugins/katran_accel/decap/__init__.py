# SPDX-License-Identifier: Apache-2.0
"""`nfcore decap`: what a real runs whose kernel has no tunnel for the balancer's packets."""
