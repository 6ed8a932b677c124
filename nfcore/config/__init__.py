# SPDX-License-Identifier: Apache-2.0
"""The TOML file: read, checked, turned into the models of `nfcore.api.config`."""
