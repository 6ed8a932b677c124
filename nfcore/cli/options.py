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
    Path | None, typer.Option("--config", "-c", metavar="CONFIG", help="Take the socket from this TOML.")
]
OptionalConfig = Annotated[
    Path | None, typer.Argument(metavar="CONFIG", help="Take the socket from this TOML.", show_default=False)
]
SocketOption = Annotated[Path | None, typer.Option("--socket", help=f"The daemon's socket (default {DEFAULT_SOCKET}).")]
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
    """Return the path of the daemon's socket: as given, else from the TOML, else the default."""
    if socket is not None:
        return socket
    if config is None:
        return Path(DEFAULT_SOCKET)
    from ..config.loader import load_config
    from ..hooks.manager import PluginManager

    return Path(load_config(config, PluginManager()).nf.socket)
