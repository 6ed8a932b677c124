# SPDX-License-Identifier: Apache-2.0
"""The process of `nfcore run`: start, signals, reload, and what it answers on its socket."""
