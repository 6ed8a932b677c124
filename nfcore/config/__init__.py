# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the TOML file, and gives a `nfcore.api.config.Config`."""
