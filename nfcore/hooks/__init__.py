# SPDX-License-Identifier: Apache-2.0
"""Calls hooks: finds and loads plugins, calls them one by one, checks their results, reports their faults."""
