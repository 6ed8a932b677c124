# SPDX-License-Identifier: Apache-2.0
"""The daemon's Unix socket: the server, and the client that commands use."""
