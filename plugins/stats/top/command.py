# SPDX-License-Identifier: Apache-2.0
"""The command `nfcore top`: its options."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from nfcore.cli.options import OptionalConfig, SocketOption, find_socket

app = typer.Typer()


@app.command()
def top(
    config: OptionalConfig = None,
    interval: Annotated[
        float, typer.Option("--interval", "-i", min=0.1, max=3600.0, metavar="SECONDS", help="Between two samples.")
    ] = 1.0,
    match: Annotated[str, typer.Option(help="Start with this filter: part of a name, an address, a prefix.")] = "",
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also flows that have ended: their connections were closed.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Print one view, of two samples, and exit.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", help="With --once: write the view as an SVG file.", readable=False),
    ] = None,
    socket: SocketOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object every interval instead of a view; one with --once.")
    ] = False,
) -> None:
    """Show the running daemon, live: VIPs, reals, rates, the fast path's share, the hottest flows, the NIC's table.

    Keys: arrows select, enter opens a VIP, tab goes to the next table, s sorts, / filters, p pauses, h shows all
    keys, q quits. A rate is – until it is known. Without a daemon it shows the reason and tries again.

    Examples:

      nfcore top lb.toml

      nfcore top --once --match 198.18.10.1

      nfcore top --json --interval 10 | jq .fast_share
    """
    from .app import once as show_once  # noqa: PLC0415
    from .app import stream, watch  # noqa: PLC0415
    from .keys import View  # noqa: PLC0415 - `--help` must not load rich's and the daemon's modules

    if svg is not None and (as_json or not once):
        raise typer.BadParameter("goes with --once, and without --json", param_hint="--svg")
    view = View(text=match, ended=every)
    place = find_socket(config, socket) if config or socket else None

    def find() -> Path:
        return place or find_socket(None, None)

    if once:
        show_once(find, interval, view, as_json=as_json, picture=svg)
    elif as_json:
        with contextlib.suppress(KeyboardInterrupt):
            stream(find, interval, view)
    else:
        raise typer.Exit(watch(find, interval, view))
