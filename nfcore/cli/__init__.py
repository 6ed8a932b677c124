# SPDX-License-Identifier: Apache-2.0
"""The command line: every `nfcore` command, its options, and what it prints."""
