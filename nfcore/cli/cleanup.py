# SPDX-License-Identifier: Apache-2.0
"""`nfcore cleanup`: removes what a killed daemon left behind, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from ..api.config import Config
from ..control.client import daemon_answers
from ..daemon.attachment import find_leftovers
from ..daemon.bootstrap import CORE, find_devices, lock_all, make_context, state_path
from ..daemon.chain import remove_leftovers
from ..errors import HostError, NfcoreError, describe_error
from ..hooks.manager import PluginManager
from ..hooks.results import check_result


def cleanup(config: Config, plugins: PluginManager) -> list[str]:
    """Remove programs, rules, pins and the socket of a dead daemon; return a line for each thing removed.

    HostError: the daemon runs, or a plugin failed; then state file and socket stay for another try.
    """
    socket = Path(config.nf.socket)
    if daemon_answers(socket):
        raise HostError(f"the daemon is running: its socket {socket} answers; stop it instead (SIGTERM)")
    # The kernel has removed what was attached to an interface that no longer exists.
    context = make_context(config, plugins, find_devices(config, all_of_them=False))
    lines: list[str] = []
    faults: list[str] = []
    with context.locks:
        lock_all(context)
        # Programs first, so that no packet meets a function whose maps are gone.
        steps: list[tuple[str, Callable[[], Iterable[str] | None]]] = [
            *((CORE, leftover.remove) for leftover in find_leftovers(config, context.state_file)),
            (CORE, partial(remove_leftovers, config)),
        ]
        for plugin in plugins.implementing("cleanup"):
            steps.append((plugin, partial(plugins.call, plugin, "cleanup", context=context)))
        for owner, step in steps:
            try:
                lines += check_result("cleanup", {}, step())
            except Exception as error:  # noqa: BLE001 - the others still clean up; all faults are reported
                faults.append(f"{owner}: {error if isinstance(error, NfcoreError) else describe_error(error)}")
    if faults:
        done = "".join(f"\nremoved before: {line}" for line in lines)
        raise HostError("cleanup is not complete: " + "; ".join(faults) + done)
    state_file = state_path(config)
    for path, exists in ((socket, socket.is_socket()), (state_file, state_file.is_file())):
        if exists:
            path.unlink()
            lines.append(f"nfcore: removed {path}")
    return lines
