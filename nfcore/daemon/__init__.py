# SPDX-License-Identifier: Apache-2.0
"""The daemon of `nfcore run`: startup, main loop, signals, reload, shutdown, and the methods of its socket."""
