# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: text tables, SVG plots, an HTML page."""
