# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and how they lead to the daemon's socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import HostError, NfcoreError

DEFAULT_SOCKET = "/run/nfcore/nfcore.sock"
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="CONFIG", help="Take the socket from this TOML.", readable=False),
]
"""Only for a command whose arguments are of any number: each argument CONFIG is an option, too."""
OptionalConfig = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", help="Take the socket from this TOML.", show_default=False, readable=False),
]
SocketOption = Annotated[
    Path | None,
    typer.Option(
        "--socket",
        help=f"The daemon's socket (default {DEFAULT_SOCKET}, or that of the only running daemon).",
        readable=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def request_metrics(ask: Callable[[], Any], socket: Path) -> Any:
    """Call `ask`, a request to a method of the stats plugin. HostError: the daemon at `socket` runs without stats."""
    try:
        return ask()
    except NfcoreError as error:
        if not str(error).startswith("no method "):
            raise
        raise HostError(f'the daemon at {socket} has no metrics: add "stats" to [nf] plugins') from None


def find_socket(config: Path | None, socket: Path | None) -> Path:
    """Return the path of the daemon's socket: as given, else from the TOML, else of the daemon that runs.

    That is the default socket where a daemon answers there, else that of the only running daemon. HostError names the
    sockets when there are several.
    """
    if socket is not None:
        return socket
    if config is None:
        return _running_socket(Path(DEFAULT_SOCKET))
    from ..config.loader import load_config
    from ..hooks.manager import PluginManager

    return Path(load_config(config, PluginManager()).nf.socket)


def _running_socket(default: Path) -> Path:
    from ..control.client import daemon_answers
    from ..control.discovery import running_daemons

    if daemon_answers(default):
        return default
    running = running_daemons()
    if len(running) > 1:
        sockets = ", ".join(map(str, running))
        raise HostError(f"{len(running)} daemons run here; name one by CONFIG or --socket: {sockets}")
    return running[0] if running else default


def last_is_config(words: list[str], config: Path | None, socket: Path | None) -> tuple[list[str], Path | None]:
    """Take the last of a command's words for CONFIG if it ends in .toml and no option names the daemon."""
    if config is None and socket is None and words and words[-1].endswith(".toml"):
        return words[:-1], Path(words[-1])
    return words, config
