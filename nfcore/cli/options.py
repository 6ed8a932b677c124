# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the daemon's socket that they lead to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_SOCKET = "/run/nfcore/nfcore.sock"
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="CONFIG", help="Take the socket from this TOML.")
]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="Take the socket from this TOML.", show_default=False)
]
SocketOption = Annotated[Path | None, typer.Option("--socket", help=f"The daemon's socket (default {DEFAULT_SOCKET}).")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def ask_metrics(ask: Callable[[], Any], socket: Path) -> Any:
    """Ask what the stats plugin answers; HostError says so when the daemon at `socket` goes without it."""
    from ..errors import HostError, NfcoreError  # noqa: PLC0415

    try:
        return ask()
    except NfcoreError as error:
        if not str(error).startswith("no method "):
            raise
        raise HostError(f'the daemon at {socket} has no figures: add "stats" to [nf] plugins') from None


def find_socket(config: Path | None, socket: Path | None) -> Path:
    """Say where the daemon listens: as told, as the TOML has it, or where it is by default."""
    if socket is not None:
        return socket
    return Path(_socket_of(config)) if config else Path(DEFAULT_SOCKET)


def _socket_of(config: Path) -> str:
    from ..config.loader import load_config  # noqa: PLC0415
    from ..hooks.manager import PluginManager  # noqa: PLC0415

    return load_config(config, PluginManager()).nf.socket
