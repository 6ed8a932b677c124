# SPDX-License-Identifier: Apache-2.0
"""The commands `nfcore connections …`, over the daemon's socket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from nfcore.cli.options import JsonOption, OptionalConfig, SocketOption, find_socket
from nfcore.cli.tables import TextTable, show
from nfcore.control.client import request
from nfcore.errors import HostError, NfcoreError
from nfcore.text import json_text

app = typer.Typer(
    help="The balancer's connection tables: which real each connection goes to.",
    epilog="Example: nfcore connections purge --real 198.18.20.11",
    no_args_is_help=True,
)
TIMEOUT = 60.0
"""Seconds for an answer: other requests may have their turn first."""
PAGE = 20_000
FlowArgument = Annotated[
    str, typer.Argument(metavar="FLOW", help="As '198.18.1.2:40000 > 198.18.10.1:80/tcp'.", show_default=False)
]
VipOption = Annotated[str | None, typer.Option(help="Only of this VIP, as 198.18.10.1:80/tcp.")]
RealOption = Annotated[str | None, typer.Option(help="Only to the real with this address.")]


@app.command("list")
def list_connections(
    config: OptionalConfig = None,
    vip: VipOption = None,
    real: RealOption = None,
    client: Annotated[str | None, typer.Option(help="Only from this address or prefix.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list, in no order.")] = 50,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List connections with their VIP and real, and the table that has them: of a CPU, the fallback, or rules.

    A connection may be in several tables. The table "rules" has those for which a NIC has a rule, or may get one. How
    long a connection is idle is known of UDP only.

    Examples:

      nfcore connections list lb.toml --real 198.18.20.11

      nfcore connections list --vip 198.18.10.1:80/tcp --client 198.18.1.0/24 --json
    """
    path = find_socket(config, socket)
    wanted = _given(vip=vip, real=real, client=client)
    rows: list[dict[str, Any]] = []
    answer: dict[str, Any] = {"next": -1}
    while answer["next"] is not None and len(rows) < limit:
        page = min(limit - len(rows), PAGE)
        answer = _request(path, "list", **wanted, after=answer["next"], limit=page)
        rows += answer["entries"]
    rows = rows[:limit]
    if as_json:
        print(json_text({"entries": rows, **{key: answer[key] for key in ("matching", "total", "notes")}}))
        return
    _show(rows)
    print(f"{len(rows):,} listed of {answer['matching']:,} that match; {answer['total']:,} in all tables")
    _print_notes(answer)


@app.command("find")
def find_connection(
    flow: FlowArgument, config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Show what each table has of one flow, and where the ring of its VIP would send it.

    Example: nfcore connections find "198.18.1.2:40000 > 198.18.10.1:80/tcp"
    """
    answer = _request(find_socket(config, socket), "find", flow=flow)
    if as_json:
        print(json_text(answer))
        return
    if answer["entries"]:
        _show(answer["entries"])
    else:
        print(f"{answer['flow']} is in no connection table")
    ring = answer["ring_real"] or "no real"
    print(f"the ring of {answer['vip']} leads to {ring}" if answer["vip"] else "no VIP takes its packets any more")
    _print_notes(answer)


@app.command("delete")
def delete_connection(
    flow: FlowArgument, config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Remove one connection: its next packet is sent as a new flow's, which may be to another real.

    A rule that a NIC has for it is removed, too.

    Example: nfcore connections delete "198.18.1.2:40000 > 198.18.10.1:80/tcp"
    """
    _print_removed(_request(find_socket(config, socket), "delete", flow=flow), as_json=as_json)


@app.command("purge")
def purge_connections(
    config: OptionalConfig = None,
    vip: VipOption = None,
    real: RealOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove all connections of a VIP, to a real, or of a VIP to a real. Rules that NICs have for them go, too.

    The next packet of each is sent as a new flow's. Connections whose real is still the ring's choice go on; others
    break. To empty a real: set its weight to 0, nfcore reload, wait for as long as you like, and purge it.

    Examples:

      nfcore connections purge --real 198.18.20.11

      nfcore connections purge lb.toml --vip 198.18.10.1:80/tcp --real 198.18.20.11 --yes
    """
    wanted = _given(vip=vip, real=real)
    if not wanted:
        raise typer.BadParameter("name a VIP, a real, or both", param_hint="--vip, --real")
    path = find_socket(config, socket)
    if not yes:
        there = _request(path, "list", **wanted, limit=1)["matching"]
        typer.confirm(f"Remove {there:,} entries of connections?", abort=True, err=True)
    _print_removed(_request(path, "purge", **wanted), as_json=as_json)


@app.command("fill")
def show_fill(config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show how full the table of each CPU is, and for how long its UDP flows have been idle.

    Those that have been idle for more than 30 s have expired: their next packet is that of a new flow.

    Example: nfcore connections fill lb.toml
    """
    answer = _request(find_socket(config, socket), "fill")
    if as_json:
        print(json_text(answer))
        return
    table = TextTable("table", "entries", "of", "full", "TCP", "UDP", "expired", "UDP idle, median", "most")
    for row in answer["tables"]:
        idle = row.get("udp_idle_seconds", {})
        table.add_row(
            _place(row),
            f"{row['entries']:,}",
            f"{row['capacity']:,}",
            f"{row['entries'] / row['capacity']:.1%}",
            f"{row['tcp']:,}",
            f"{row['udp']:,}",
            f"{row['udp_expired']:,}" if "udp_expired" in row else "",
            _seconds(idle.get("median")),
            _seconds(idle.get("most")),
        )
    show(table)


def _request(path: Path, method: str, **parameters: Any) -> Any:
    try:
        return request(path, f"connections.{method}", timeout=TIMEOUT, **parameters)
    except NfcoreError as error:
        if not str(error).startswith("no method "):
            raise
        raise HostError(f"the daemon at {path} has no connections: katran_accel is in none of its chains") from None


def _given(**parameters: str | None) -> dict[str, str]:
    return {key: value for key, value in parameters.items() if value is not None}


def _show(rows: Iterable[Mapping[str, Any]]) -> None:
    table = TextTable("flow", "VIP", "real", "table", "idle", "in hardware")
    for row in rows:
        idle = _seconds(row["idle_seconds"]) or "unknown"
        table.add_row(
            row["flow"],
            row["vip"] or "none any more",
            row["real"],
            _place(row),
            f"{idle}, expired" if row["expired"] else idle,
            "yes" if row["in_hardware"] else "no",
        )
    show(table)


def _place(row: Mapping[str, Any]) -> str:
    return str(row["table"]) if row["cpu"] is None else f"CPU {row['cpu']}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} s"


def _print_removed(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json_text(answer))
        return
    print(f"removed {answer['deleted']:,} entries of connection tables, and ended {answer['rules_ended']:,} rules")
    if answer["rules_left"]:
        print(f"the NIC still has {answer['rules_left']:,} of these rules: their packets go to the old real until then")
    _print_notes(answer)


def _print_notes(answer: Mapping[str, Any]) -> None:
    for note in answer["notes"]:
        print(note)
