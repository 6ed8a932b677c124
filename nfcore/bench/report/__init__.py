# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: tables, plots, an HTML page."""
