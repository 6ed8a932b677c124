# SPDX-License-Identifier: Apache-2.0
"""`nfcore cleanup`: what a killed daemon left behind, and only that."""

from __future__ import annotations

from pathlib import Path

from ..api.config import Config
from ..control.client import daemon_answers
from ..daemon.bootstrap import find_devices, make_context, state_path
from ..errors import HostError
from ..hooks.manager import PluginManager


def cleanup(config: Config, plugins: PluginManager) -> list[str]:
    """Remove programs, rules, pins and the socket of a daemon that is gone; a line for each thing removed."""
    socket = Path(config.nf.socket)
    if daemon_answers(socket):
        raise HostError(f"the daemon is running: its socket {socket} answers; stop it instead (SIGTERM)")
    # What hung on an interface that is gone went with it.
    context = make_context(config, plugins, find_devices(config, all_of_them=False))
    lines: list[str] = []
    faults: list[str] = []
    with context.locks:
        for device in context.devices:
            context.locks.interface(device.name, device.ifindex)
        for plugin in plugins.implementing("cleanup"):
            try:
                lines += plugins.call(plugin, "cleanup", context=context) or ()
            except Exception as error:  # noqa: BLE001 - the others clean up all the same, and all faults are told
                faults.append(f"{plugin}: {error}")
    if faults:
        # The notes stay: another try needs them.
        done = "".join(f"\nremoved before: {line}" for line in lines)
        raise HostError("cleanup is not complete: " + "; ".join(faults) + done)
    for leftover, is_ours in ((socket, socket.is_socket()), (state_path(config), state_path(config).is_file())):
        if is_ours:
            leftover.unlink()
            lines.append(f"nfcore: removed {leftover}")
    return lines
