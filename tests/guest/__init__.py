# SPDX-License-Identifier: Apache-2.0
"""The guest: Debian's kernel in QEMU, with the host's files and pytest inside."""
