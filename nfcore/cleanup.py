# SPDX-License-Identifier: Apache-2.0
"""`nfcore cleanup`: what a killed daemon left behind, and only that."""

from __future__ import annotations

from pathlib import Path

from .config import Config
from .control import daemon_answers
from .errors import HostError
from .host import PluginHost
from .session import find_devices, make_context, state_path


def cleanup(config: Config, host: PluginHost) -> list[str]:
    """Remove programs, rules, pins and the socket of a daemon that is gone; a line for each thing removed."""
    socket = Path(config.nf.socket)
    if daemon_answers(socket):
        raise HostError(f"the daemon is running: its socket {socket} answers; stop it instead (SIGTERM)")
    context = make_context(config, host, find_devices(config))
    lines = [line for _, found in host.each("cleanup", context=context) for line in found]
    for leftover, is_ours in ((socket, socket.is_socket()), (state_path(config), state_path(config).is_file())):
        if is_ours:
            leftover.unlink()
            lines.append(f"nfcore: removed {leftover}")
    return lines
