# SPDX-License-Identifier: Apache-2.0
"""Commands that talk to the running daemon over its socket: they need nothing else of the machine."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..control.client import request
from ..engine.event_kind import EventKind
from ..engine.flow_state import LISTED_STATES, SORT_KEYS
from ..errors import ConfigError, Problem
from ..logs import print_user
from ..text import json_text, printable, target_text
from .options import JsonOption, OptionalConfig, SocketOption, find_socket, request_metrics
from .tables import TextTable, show, target_columns

app = typer.Typer()


# typer wants the choices of an option as an enumeration of strings.
_StateChoice = StrEnum("_StateChoice", [(state.name, state.word) for state in LISTED_STATES])  # type: ignore[misc]
_SortChoice = StrEnum("_SortChoice", [(key.upper(), key) for key in SORT_KEYS])  # type: ignore[misc]
_SORT_BY_RATE = _SortChoice("rate")
_KindChoice = StrEnum("_KindChoice", [(kind.name, kind.word) for kind in EventKind])  # type: ignore[misc]


class Switch(StrEnum):
    """Argument of `nfcore offload`."""

    ON = "on"
    OFF = "off"


def _request(config: Path | None, socket: Path | None, method: str, **parameters: Any) -> Any:
    return request(find_socket(config, socket), method, timeout=30.0, **parameters)


@app.command()
def stats(
    config: OptionalConfig = None,
    match: Annotated[
        str, typer.Option(help="Only metrics whose name and labels contain each of these words (reason=idle).")
    ] = "",
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the running daemon's metrics.

    In JSON, a value that is not a finite number is a string: "NaN", "+Inf" or "-Inf".

    Examples:

      nfcore stats

      nfcore stats lb.toml --match "real_packets 198.18.20.11"

      nfcore stats examples/demo.toml --json
    """
    path = find_socket(config, socket)
    metrics = _matching(request_metrics(lambda: _request(None, path, "stats"), path)["metrics"], match.split())
    if as_json:
        print(json_text({"metrics": metrics}))
        return
    table = TextTable("metric", "labels", "value", "unit")
    for metric in metrics:
        for sample in metric["samples"]:
            table.add_row(metric["name"], printable(_labels(sample)), _value(sample), metric["unit"])
    show(table)


def _matching(metrics: list[dict[str, Any]], words: list[str]) -> list[dict[str, Any]]:
    """Keep samples whose name and labels contain every word; drop a metric without samples unless its name matches."""

    def has_all(text: str) -> bool:
        return all(word in text for word in words)

    kept = []
    for metric in metrics:
        name = metric["name"]
        samples = [sample for sample in metric["samples"] if has_all(f"{name} {_labels(sample)}")]
        if samples or has_all(name):
            kept.append({**metric, "samples": samples})
    return kept


def _labels(sample: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sample["labels"].items())


def _value(sample: Mapping[str, Any]) -> str:
    """Format a sample's value; of a histogram, the number of observations and their average."""
    if "value" in sample:
        return _number(sample["value"])
    try:
        average = sample["sum"] / sample["count"] if sample["count"] else 0.0
    except (TypeError, OverflowError):
        return _number(sample["count"])
    return f"{_number(sample['count'])}, on average {average:.3g}"


def _number(value: Any) -> str:
    """Format a number; whatever else a plugin gave is printed as it is."""
    try:
        return f"{value:,}"
    except (TypeError, ValueError):
        return str(value)


@app.command()
def flows(
    config: OptionalConfig = None,
    state: Annotated[
        list[_StateChoice] | None,
        typer.Option(help="Only flows in this state. Repeatable; default: all but ended ones.", show_default=False),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", "-a", help="Also flows that have ended: their connections were closed.")
    ] = False,
    match: Annotated[
        str,
        typer.Option(help="An address, prefix or address:port, a function, or part of a target, port or reason."),
    ] = "",
    sort: Annotated[_SortChoice, typer.Option(help="The largest first; age: the oldest first.")] = _SORT_BY_RATE,
    reverse: Annotated[
        bool, typer.Option("--reverse", "-r", help="The smallest first; age: the youngest first.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many flows to list.")] = 50,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the flows that the daemon knows.

    Shows which are in hardware, at what rate, and why the others are not.

    Examples:

      nfcore flows lb.toml --state installed --sort packets

      nfcore flows lb.toml --match 198.18.1.0/24 --json
    """
    states = [str(choice) for choice in state or () if not every]
    filters = {"states": states, "match": match, "sort": str(sort), "reverse": reverse, "limit": limit, "ended": every}
    answer = _request(config, socket, "flows", **filters)
    if as_json:
        print(json_text(answer))
        return
    titles, targets = target_columns(answer["flows"])
    table = TextTable("flow", "state", "why", *titles, "mark", "packets/s", "in hardware", "since")
    for row, target in zip(answer["flows"], targets, strict=True):
        texts = [row["flow"], row["state"], row["reason"] or "", *target, row["mark"] or "–"]
        numbers = [f"{row['rate']:,.1f}", f"{row['hardware_packets']:,}", f"{row['since_seconds']:,.1f} s"]
        table.add_row(*map(str, texts), *numbers)
    show(table)
    counts = ", ".join(f"{number:,} {name}" for name, number in answer["states"].items())
    print(f"{len(answer['flows']):,} of {answer['matching']:,} matching flows; in total {counts}")
    if answer["states"].get("ended") and not states and not every:
        print("ended flows are not listed: --all")
    if not answer["offload"]:
        print("offloading is switched off: nfcore offload on")


@app.command()
def explain(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="As 198.18.1.2:40000 > 198.18.10.1:80/tcp, in quotes.")],
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why a flow is in hardware, or is not.

    Shows since when, by which mark and at what rate.

    Examples:

      nfcore explain "198.18.1.2:40000 > 198.18.10.1:80/tcp"

      nfcore explain "[2001:db8::2]:40000 > [2001:db8:10::1]:80/tcp" lb.toml --json
    """
    answer = _request(config, socket, "explain", flow=_checked_flow(flow))
    if as_json:
        print(json_text(answer))
        return
    print(f"{answer['flow']}: {'in hardware' if answer['in_hardware'] else 'not in hardware'}")
    for function, text in answer["functions"].items():
        print(f"  {function}: {printable(text)}")
    if answer["why"]:
        print(f"  {printable(answer['why'])}")
    for row in answer["found"]:
        for line in _lines(row):
            print(f"  {printable(line)}")


def _checked_flow(flow: str) -> str:
    """Return a flow as the daemon writes it. ConfigError: the text is no flow."""
    from ..api.flows import FlowMatch  # numpy takes as long to import as all the rest of most commands

    try:
        return str(FlowMatch.parse(flow))
    except ValueError as error:
        raise ConfigError("FLOW", [Problem("", str(error))]) from None


def _lines(row: dict[str, Any]) -> list[str]:
    """Describe one flow, one fact per line."""
    target = target_text(row["target"])
    lines = [row["why"], f"{row['state']} for {row['since_seconds']:,.1f} s on {row['interface']}"]
    lines.append(f"{row['nf']}: {target}" if target else f"network function {row['nf']}")
    if row["mark"]:
        lines.append(f"mark {row['mark']}" + (f", set by {row['backend']}" if row["backend"] else ""))
    if row["in_hardware"]:
        lines.append(f"the NIC counted {row['packets']:,} packets, {row['bytes']:,} bytes")
    if row["hardware_packets"] > row["packets"]:
        counted = f"{row['hardware_packets']:,} packets, {row['hardware_bytes']:,} bytes"
        lines.append(f"in hardware since it is tracked, over all its rules: {counted}")
    rate = f"{row['rate']:,.1f} packets/s" if row["rate"] else "rate not known yet"
    lines.append(f"{rate}; last seen {row['seen_seconds']:,.1f} s ago; {_known_by(row)}")
    return lines


def _known_by(row: dict[str, Any]) -> str:
    """Say how the daemon came to know a flow."""
    if row["ordered"]:
        return "ordered"
    return "taken over from an earlier run" if row["cpu"] is None else f"reported by CPU {row['cpu']}"


@app.command()
def events(
    config: OptionalConfig = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep running and print new events.")] = False,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=0,
            help="Begin with the last N matching events. Default: all, or 10 with --follow.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Begin at a time: 5m ago, a time of day, or a date with a time.")
    ] = "",
    kind: Annotated[
        list[_KindChoice] | None,
        typer.Option(help="Only events of this kind. Repeatable; default: all.", show_default=False),
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD", help="Only this reason, as nfcore flows writes it. Repeatable.", show_default=False
        ),
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this interface. Repeatable.", show_default=False)
    ] = None,
    match: Annotated[
        str,
        typer.Option(help="An address, prefix or address:port, a function, or part of a target, port or reason."),
    ] = "",
    socket: SocketOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line instead of text.")] = False,
) -> None:
    """Print the daemon's events; with --follow also new ones.

    Events are rules installed, aged, refused, failed, … and why; also reloads, links and backends. The daemon keeps
    the last [nf] events_kept events of flows. --follow ends with Ctrl-C, or with an error (exit status 1) when the
    daemon ends. When events come faster than they can be printed, some are left out and counted.

    Examples:

      nfcore events lb.toml --since 10m --kind refused --kind failed

      nfcore events -f --match 198.18.10.1:80 --json
    """
    from .events import Selection, show_events

    selection = Selection(
        kinds=[str(choice) for choice in kind or ()],
        reasons=reason or [],
        interfaces=interface or [],
        match=match,
        last=last,
        since=since,
    )
    show_events(find_socket(config, socket), selection, follow=follow, as_json=as_json)


@app.command()
def offload(
    switch: Annotated[Switch, typer.Argument(help="off: remove every rule from the NIC and install no more.")],
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch offloading off or on at once: the kill switch.

    Off: every flow goes back to the slow path and keeps its target. Offloading stays off, also after a restart of the
    daemon, until you switch it on. Packets fare as before meanwhile.

    Example: nfcore offload off lb.toml
    """
    answer = _request(config, socket, "offload", on=switch is Switch.ON)
    if as_json:
        print(json_text(answer))
    elif answer["on"]:
        print("offloading is on: flows get rules as they are reported")
    else:
        print(f"offloading is off: {answer['rules_removed']:,} flows go back to the slow path")


def _is_same(config: Path, source: Path) -> bool:
    """Whether the daemon's file is this one. Its path may be relative, to a folder that only the daemon knows."""
    return config.samefile(source) if source.is_absolute() and source.exists() else config.name == source.name


@app.command()
def reload(config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Make the daemon read its TOML again, without a restart.

    The tables of network functions and most of [offload] can change, such as VIPs, reals and weights. The daemon reads
    the file that it was started with; the output names it. When this returns, a target that was removed gets no more
    packets; connections to the others stay. A mistake, or a change that needs a restart, is named, and nothing changes.
    SIGHUP does the same.

    Example: nfcore reload lb.toml
    """
    answer = _request(config, socket, "reload")
    if config is not None and not _is_same(config, Path(answer["source"])):
        about = f"the daemon was started with {answer['source']} and has read that, not {config}: to change, edit it"
        print_user(logging.WARNING, f"warning: {about}, or restart nfcore with the other")
    if as_json:
        print(json_text(answer))
    elif answer["changed"]:
        ended = answer["flows_ended"]
        changed = ", ".join(answer["changed"])
        print(f"{answer['source']}: changed: {changed}; {ended:,} accelerated flows ended")
    else:
        print(f"{answer['source']}: nothing has changed")
    for warning in () if as_json else answer["warnings"]:
        print_user(logging.WARNING, f"warning: {answer['source']}: {warning}")
    if not as_json:
        for sentence in answer["found"]:
            print(f"found anew: {sentence}")
