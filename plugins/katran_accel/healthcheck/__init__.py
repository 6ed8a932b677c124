# SPDX-License-Identifier: Apache-2.0
"""Health-check encapsulation: the mark of a checker's socket says which real its packets go to."""
