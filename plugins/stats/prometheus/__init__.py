# SPDX-License-Identifier: Apache-2.0
"""Prometheus: the HTTP endpoint, its text format, alert rules, a dashboard."""
