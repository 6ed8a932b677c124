# SPDX-License-Identifier: Apache-2.0
"""The commands `nfcore flow …`: orders for flows, over the daemon's socket."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from nfcore.cli.options import ConfigOption, JsonOption, OptionalConfig, SocketOption, find_socket, last_is_config
from nfcore.cli.tables import TextTable, show
from nfcore.client import Flow, FlowClient, FlowError, FlowStatus
from nfcore.errors import ConfigError, HostError, Problem
from nfcore.refusals import explain
from nfcore.text import json_text, printable

app = typer.Typer(
    help="Actions for flows: drop, police, redirect, … what you name.",
    epilog="Example: nfcore flow add flood --src 198.18.7.0/24 --action drop --ttl 10m",
    no_args_is_help=True,
)

_TITLES = ("name", "match", "action", "packets", "bytes", "seen", "in hardware", "ends", "of")


class ActionChoice(StrEnum):
    """Option --action."""

    DROP = "drop"
    PASS = "pass"
    COUNT = "count"
    REDIRECT = "redirect"
    SET_DSCP = "set_dscp"
    POLICE = "police"
    CPU = "cpu"


class OwnerChoice(StrEnum):
    """Option --owner."""

    TOML = "toml"
    APPLICATION = "application"


@app.command()
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for the entry, different from all others.")],
    action: Annotated[ActionChoice, typer.Option(help="What to do with the packets.")],
    src: Annotated[str | None, typer.Option(help="Source address or prefix. Default: any.")] = None,
    dst: Annotated[str | None, typer.Option(help="Destination address or prefix. Default: any.")] = None,
    sport: Annotated[int | None, typer.Option(help="Source port. Default: any.")] = None,
    dport: Annotated[int | None, typer.Option(help="Destination port. Default: any.")] = None,
    proto: Annotated[str | None, typer.Option(help="tcp, udp or a number. Default: any.")] = None,
    family: Annotated[int | None, typer.Option(help="4 or 6, when no address says it.")] = None,
    interface: Annotated[str | None, typer.Option(help="redirect: where to.")] = None,
    dscp: Annotated[int | None, typer.Option(help="set_dscp: 0 to 63.")] = None,
    packets_per_second: Annotated[int | None, typer.Option(help="police: the rate, in packets.")] = None,
    bytes_per_second: Annotated[int | None, typer.Option(help="police: the rate, in bytes.")] = None,
    burst: Annotated[int | None, typer.Option(help="police: what may come at once, in packets or bytes.")] = None,
    cpu: Annotated[int | None, typer.Option(help="cpu: its number.")] = None,
    priority: Annotated[int, typer.Option(help="Between equally specific entries the higher one wins.")] = 0,
    offload: Annotated[
        bool, typer.Option("--offload/--no-offload", help="Whether a NIC may have a rule for it.")
    ] = True,
    require: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="What marked packets must match: src, dst, proto, dport, family."),
    ] = None,
    ttl: Annotated[str | None, typer.Option(help="Lifetime, such as 10m. Default: until it is deleted.")] = None,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add an entry: an action for the packets that match.

    Examples:

      nfcore flow add flood --src 198.18.7.0/24 --action drop --ttl 10m

      nfcore flow add calls --dst 198.18.10.5 --proto udp --dport 5060 --action set_dscp --dscp 46
    """
    flow = Flow(
        name=name,
        src=src,
        dst=dst,
        sport=sport,
        dport=dport,
        proto=_number_or_text(proto) if proto is not None else None,
        family=family,
        action=str(action),
        interface=interface,
        dscp=dscp,
        packets_per_second=packets_per_second,
        bytes_per_second=bytes_per_second,
        burst=burst,
        cpu=cpu,
        priority=priority,
        offload=offload,
        require=_required(require),
        ttl=ttl,
    )
    with FlowClient(find_socket(config, socket)) as client, _named_options():
        changed = client.add(flow)
    print(json_text(asdict(changed)) if as_json else f"added {printable(name)}")


@app.command("del")
def delete(
    names: Annotated[list[str], typer.Argument(metavar="NAME… [CONFIG]", help="The entries.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete entries: all that are named, or none.

    A last word that ends in .toml is CONFIG. For an entry of such a name, name the daemon by --config or --socket.

    Examples:

      nfcore flow del flood calls

      nfcore flow del flood lb.toml
    """
    names, config = last_is_config(names, config, socket)
    if not names:
        raise typer.BadParameter("name at least one entry", param_hint="NAME")
    with FlowClient(find_socket(config, socket)) as client:
        try:
            changed = client.delete(*names)
        except FlowError as error:
            problems = [Problem(str(each["entry"]), str(each["message"])) for each in error.problems]
            raise (ConfigError("flow del", problems) if problems else error) from None
    print(json_text(asdict(changed)) if as_json else f"deleted {changed.deleted:,}")


@app.command("list")
def list_entries(
    match: Annotated[
        str,
        typer.Argument(metavar="[MATCH]", help="An address, a prefix, or part of a name."),
    ] = "",
    action: Annotated[ActionChoice | None, typer.Option(help="Only entries with this action.")] = None,
    owner: Annotated[OwnerChoice | None, typer.Option(help="Only the TOML's, or those of applications.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many entries to list.")] = 50,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List entries with their packets, and why those are not in hardware that are not.

    Examples:

      nfcore flow list 198.18.7.0/24

      nfcore flow list lb.toml --action drop --json
    """
    words, config = last_is_config([match], config, socket)
    match = "".join(words)
    with FlowClient(find_socket(config, socket)) as client:
        total = client.daemon["entries"]
        found: list[FlowStatus] = []
        for status in client.list(match or None, action=action and str(action), owner=owner and str(owner)):
            if len(found) == limit:
                break
            found.append(status)
    if as_json:
        print(json_text({"entries": [_status_json(status) for status in found], "total": total}))
        return
    _show_entries(found)
    print(f"{len(found):,} listed of {total:,} entries")


def _show_entries(found: list[FlowStatus]) -> None:
    table = TextTable(*_TITLES)
    for status in found:
        table.add_row(*_cells(status))
    show(table)


def _cells(status: FlowStatus) -> tuple[str, ...]:
    """Describe an entry in the columns of _TITLES."""
    return (
        status.name,
        _match_text(status),
        _action_text(status),
        f"{status.packets:,}",
        f"{status.bytes:,}",
        "never" if status.seen_seconds is None else f"{status.seen_seconds:,.1f} s ago",
        "yes" if status.in_hardware else f"no: {status.why}",
        "" if status.expires_seconds is None else f"in {status.expires_seconds:,.0f} s",
        status.owner,
    )


@app.command("show")
def show_entry(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The entry.")],
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one entry, and which others win over it.

    Example: nfcore flow show flood
    """
    with FlowClient(find_socket(config, socket)) as client:
        status = client.show(name)
    if as_json:
        print(json_text(_status_json(status)))
        return
    print(f"{printable(status.name)}: {_action_text(status)}")
    for line in _lines(status):
        print(f"  {printable(line)}")


@app.command()
def clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete all entries of applications. Those of the TOML stay.

    Example: nfcore flow clear --yes
    """
    with FlowClient(find_socket(config, socket)) as client:
        if not yes:
            typer.confirm("Delete all entries of applications?", abort=True, err=True)
        deleted = client.clear()
    print(json_text({"deleted": deleted}) if as_json else f"deleted {deleted:,}")


@app.command()
def load(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="One entry per line, as JSON; - is standard input.", readable=False)
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Delete all other entries of applications in the same change.")
    ] = False,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the entries of a file, all of them or none.

    A line has the keys of [[flow_actions.flows]] and ttl: {"name": "flood", "src": "198.18.7.0/24", "action": "drop"}

    Examples:

      nfcore flow load blocked.jsonl

      generate-list | nfcore flow load - --replace
    """
    entries, lines = _read_lines(file)
    with FlowClient(find_socket(config, socket)) as client:
        gone = [status.name for status in client.list(owner="application")] if replace else []
        try:
            changed = client.change(entries, gone)
        except FlowError as error:
            raise _by_line(error, _source(file), lines) from None
    print(json_text(asdict(changed)) if as_json else f"added {changed.added:,}, deleted {changed.deleted:,}")


def _source(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _read_lines(file: Path) -> tuple[list[Mapping[str, Any]], list[int]]:
    """Read entries, and the number of the line of each. Empty lines are left out."""
    try:
        content = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise HostError(f"{file}: cannot be read: {explain(error, file)}") from None
    entries: list[Mapping[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ConfigError(_source(file), [Problem(f"line {number}", f"is not JSON: {error}")]) from None
        if not isinstance(entry, dict):
            text = 'should be an object such as {"name": "flood", "src": "198.18.7.0/24", "action": "drop"}'
            raise ConfigError(_source(file), [Problem(f"line {number}", f"is {entry!r:.60}; {text}")])
        entries.append(entry)
        lines.append(number)
    return entries, lines


def _refuse_constant(text: str) -> object:
    raise ValueError(f"it has {text}")


def _by_line(error: FlowError, source: str, lines: list[int]) -> Exception:
    """Name the lines of a file in an error of the daemon."""
    problems = []
    for each in error.problems:
        index = int(each.get("index", -1))
        place = f"line {lines[index]}" if 0 <= index < len(lines) else ""
        key = f", {each['key']}" if each.get("key") else ""
        problems.append(Problem(f"{place}{key}", str(each.get("message"))))
    return ConfigError(source, problems) if problems else error


@contextmanager
def _named_options() -> Iterator[None]:
    """Name the options in errors of the daemon about the entry that they describe."""
    try:
        yield
    except FlowError as error:
        problems = [
            Problem(f"--{each['key'].replace('_', '-')}" if each.get("key") else "", str(each.get("message")))
            for each in error.problems
        ]
        raise (ConfigError("flow add", problems) if problems else error) from None


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _required(pairs: list[str] | None) -> dict[str, Any] | None:
    if not pairs:
        return None
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError("flow add", [Problem("--require", f"is {pair!r:.60}; should be KEY=VALUE, as dport=443")])
        found[key] = _number_or_text(value)
    return found


def _status_json(status: FlowStatus) -> dict[str, Any]:
    return {key: value for key, value in asdict(status).items() if value is not None}


def _match_text(flow: Flow) -> str:
    """Write a match as `nfcore flows` writes flows."""

    def end(address: str | None, port: int | None) -> str:
        shown = "*" if address is None else f"[{address}]" if ":" in address else address
        return f"{shown}:{'*' if port is None else port}"

    proto = "*" if flow.proto is None else flow.proto
    family = f" IPv{flow.family}" if flow.family is not None else ""
    return f"{end(flow.src, flow.sport)} > {end(flow.dst, flow.dport)}/{proto}{family}"


def _action_text(flow: Flow) -> str:
    parameters = {
        "interface": flow.interface,
        "dscp": flow.dscp,
        "packets_per_second": flow.packets_per_second,
        "bytes_per_second": flow.bytes_per_second,
        "burst": flow.burst,
        "cpu": flow.cpu,
    }
    return " ".join([flow.action, *(f"{key}={value}" for key, value in parameters.items() if value is not None)])


def _lines(status: FlowStatus) -> Iterator[str]:
    """Describe an entry, one fact per line."""
    yield _match_text(status) + (f", priority {status.priority}" if status.priority else "")
    if status.require:
        yield "marked packets must match " + ", ".join(f"{key}={value}" for key, value in status.require.items())
    yield f"{status.packets:,} packets, {status.bytes:,} bytes, {status.hardware_packets:,} packets by NICs"
    yield "no packet yet" if status.seen_seconds is None else f"last packet {status.seen_seconds:,.1f} s ago"
    yield "in hardware" if status.in_hardware else f"not in hardware: {status.why}"
    if status.shadowed_by:
        yield "these win over it where they overlap: " + ", ".join(status.shadowed_by)
    if status.expires_seconds is not None:
        yield f"ends in {status.expires_seconds:,.0f} s"
    yield "of the TOML" if status.owner == "toml" else "of an application"
