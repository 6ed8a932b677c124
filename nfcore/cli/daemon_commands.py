# SPDX-License-Identifier: Apache-2.0
"""Commands that ask the running daemon, or tell it something: they need its socket and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.event_kind import EventKind
from ..engine.flow_state import LISTED_STATES, SORT_KEYS
from ..text import json_text, printable
from .options import ConfigOption, JsonOption, OptionalConfig, SocketOption, ask_metrics, find_socket
from .tables import TextTable, show

app = typer.Typer()


# typer takes choices as an enumeration of texts.
_StateName = StrEnum("_StateName", [(state.name, state.word) for state in LISTED_STATES])  # type: ignore[misc]
_SortKey = StrEnum("_SortKey", [(key.upper(), key) for key in SORT_KEYS])  # type: ignore[misc]
_BY_RATE = _SortKey("rate")
_EventName = StrEnum("_EventName", [(kind.name, kind.word) for kind in EventKind])  # type: ignore[misc]


class Switch(StrEnum):
    """What to do with offloading."""

    ON = "on"
    OFF = "off"


def _ask(config: Path | None, socket: Path | None, method: str, **parameters: Any) -> Any:
    from ..control.client import request  # noqa: PLC0415 - `--help` must not load asyncio and numpy

    return request(find_socket(config, socket), method, timeout=30.0, **parameters)


@app.command()
def stats(
    config: OptionalConfig = None,
    match: Annotated[
        str, typer.Option(help="Only figures that have each of these words in their name or labels (reason=idle).")
    ] = "",
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the running daemon's figures.

    In JSON, a value that is no number is a text: "NaN", "+Inf" or "-Inf".

    Examples:

      nfcore stats

      nfcore stats lb.toml --match "real_packets 198.18.20.11"

      nfcore stats examples/demo.toml --json
    """
    place = find_socket(config, socket)
    metrics = _chosen(ask_metrics(lambda: _ask(None, place, "stats"), place)["metrics"], match.split())
    if as_json:
        print(json_text({"metrics": metrics}))
        return
    table = TextTable("figure", "labels", "value", "unit")
    for metric in metrics:
        for sample in metric["samples"]:
            table.add_row(metric["name"], printable(_labels(sample)), _figure(sample), metric["unit"])
    show(table)


def _chosen(metrics: list[dict[str, Any]], words: list[str]) -> list[dict[str, Any]]:
    """Leave out samples in whose name and labels a word is missing, and then families without samples that are not
    meant by their name alone.
    """

    def has_all(text: str) -> bool:
        return all(word in text for word in words)

    chosen = []
    for metric in metrics:
        name = metric["name"]
        samples = [sample for sample in metric["samples"] if has_all(f"{name} {_labels(sample)}")]
        if samples or has_all(name):
            chosen.append({**metric, "samples": samples})
    return chosen


def _labels(sample: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sample["labels"].items())


def _figure(sample: Mapping[str, Any]) -> str:
    """One figure for a person; of a histogram, how many there were and their average."""
    if "value" in sample:
        return _number(sample["value"])
    try:
        average = sample["sum"] / sample["count"] if sample["count"] else 0.0
    except (TypeError, OverflowError):
        return _number(sample["count"])
    return f"{_number(sample['count'])}, on average {average:.3g}"


def _number(value: Any) -> str:
    """Write whatever a plugin takes for a number."""
    try:
        return f"{value:,}"
    except (TypeError, ValueError):
        return str(value)


@app.command()
def flows(
    config: OptionalConfig = None,
    state: Annotated[
        list[_StateName] | None,
        typer.Option(help="State of the flow's rule. Repeatable; default: all.", show_default=False),
    ] = None,
    match: Annotated[
        str, typer.Option(help="An address, prefix or address:port, or part of the name of a VIP, real or reason.")
    ] = "",
    sort: Annotated[_SortKey, typer.Option(help="The largest first; age: the oldest.")] = _BY_RATE,
    reverse: Annotated[bool, typer.Option("--reverse", "-r", help="The smallest first; age: the youngest.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="How many to list.")] = 50,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the flows that the daemon knows: which are in hardware, how hot they are, and why the others are not.

    Examples:

      nfcore flows lb.toml --state installed --sort packets

      nfcore flows lb.toml --match 198.18.1.0/24 --json
    """
    states = [str(each) for each in state or ()]
    wanted = {"states": states, "match": match, "sort": str(sort), "reverse": reverse, "limit": limit}
    answer = _ask(config, socket, "flows", **wanted)
    if as_json:
        print(json_text(answer))
        return
    table = TextTable("flow", "state", "why", "real", "mark", "packets/s", "in hardware", "since")
    for row in answer["flows"]:
        known = [row["flow"], row["state"], row["reason"] or "", row.get("real", ""), row["mark"] or "–"]
        figures = [f"{row['rate']:,.1f}", f"{row['hardware_packets']:,}", f"{row['since_seconds']:,.1f} s"]
        table.add_row(*map(str, known), *figures)
    show(table)
    counts = ", ".join(f"{number:,} {name}" for name, number in answer["states"].items())
    print(f"{len(answer['flows']):,} of {answer['matching']:,} matching flows; in all {counts}")
    if not answer["offload"]:
        print("offloading is switched off: nfcore offload on")


@app.command()
def explain(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="As 198.18.1.2:40000 > 198.18.10.1:80/tcp, in quotes.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a flow is in hardware, why or why not, since when, by which mark, and how hot it is.

    Examples:

      nfcore explain "198.18.1.2:40000 > 198.18.10.1:80/tcp"

      nfcore explain "[2001:db8::2]:40000 > [2001:db8:10::1]:80/tcp" --config lb.toml --json
    """
    answer = _ask(config, socket, "explain", flow=_checked(flow))
    if as_json:
        print(json_text(answer))
        return
    print(f"{answer['flow']}: {'in hardware' if answer['in_hardware'] else 'not in hardware'}")
    if answer["why"]:
        print(f"  {printable(answer['why'])}")
    for row in answer["found"]:
        for line in _lines(row):
            print(f"  {printable(line)}")


def _checked(flow: str) -> str:
    from ..api.flows import FlowMatch  # noqa: PLC0415
    from ..errors import ConfigError, Problem  # noqa: PLC0415

    try:
        return str(FlowMatch.parse(flow))
    except ValueError as error:
        raise ConfigError("FLOW", [Problem("", str(error))]) from None


def _lines(row: dict[str, Any]) -> list[str]:
    """Say what is known of one flow, a sentence a line."""
    target = " → ".join(str(row[key]) for key in ("vip", "real") if row.get(key))
    lines = [row["why"], f"{row['state']} for {row['since_seconds']:,.1f} s on {row['interface']}"]
    if target:
        lines.append(f"{row['nf']}: {target}")
    if row["mark"]:
        lines.append(f"mark {row['mark']}" + (f", set by {row['backend']}" if row["backend"] else ""))
    if row["in_hardware"]:
        lines.append(f"the NIC counted {row['packets']:,} packets, {row['bytes']:,} bytes")
    if row["hardware_packets"] > row["packets"]:
        counted = f"{row['hardware_packets']:,} packets, {row['hardware_bytes']:,} bytes"
        lines.append(f"in hardware since it is known: {counted}")
    heat = f"{row['rate']:,.1f} packets/s" if row["rate"] else "rate not known yet"
    reported = "of an earlier run" if row["cpu"] is None else f"reported by CPU {row['cpu']}"
    lines.append(f"{heat}; last seen {row['seen_seconds']:,.1f} s ago; {reported}")
    return lines


@app.command()
def events(
    config: OptionalConfig = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what happens from now on.")] = False,
    last: Annotated[
        int | None,
        typer.Option(
            "--last",
            "-n",
            min=0,
            help="Begin with the last N that fit. Default: all, or 10 with --follow.",
            show_default=False,
        ),
    ] = None,
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="Begin then: a duration such as 5m, a time of day, a date with time.")
    ] = "",
    kind: Annotated[
        list[_EventName] | None, typer.Option(help="What happened. Repeatable; default: all.", show_default=False)
    ] = None,
    reason: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="Why, as nfcore flows has it. Repeatable.", show_default=False),
    ] = None,
    interface: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Where. Repeatable.", show_default=False)
    ] = None,
    match: Annotated[
        str, typer.Option(help="An address, prefix or address:port, or part of the name of a VIP, real or reason.")
    ] = "",
    socket: SocketOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of text.")] = False,
) -> None:
    """Tell what the daemon has done, and with --follow what it does: rules installed, aged, refused and why.

    The daemon keeps the last [nf] events_kept events of flows. --follow ends with Ctrl-C, or with the daemon, which
    it says (exit status 1). When flows come faster than they can be told, some are left out, and it says how many.

    Examples:

      nfcore events lb.toml --since 10m --kind refused --kind failed

      nfcore events -f --match 198.18.10.1:80 --json
    """
    from .events import Wanted, show_events  # noqa: PLC0415

    wanted = Wanted(
        kinds=[str(each) for each in kind or ()],
        reasons=reason or [],
        interfaces=interface or [],
        match=match,
        last=last,
        since=since,
    )
    show_events(find_socket(config, socket), wanted, follow=follow, as_json=as_json)


@app.command()
def offload(
    switch: Annotated[Switch, typer.Argument(help="off: take every rule out of the NIC and install no more.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Switch offloading off or on, at once: the kill switch.

    Off: every flow goes back to the slow path with the real that it has, and stays there, also after a restart of
    the daemon, until it is switched on. Balancing goes on meanwhile.

    Example: nfcore offload off --config lb.toml
    """
    answer = _ask(config, socket, "offload", on=switch is Switch.ON)
    if as_json:
        print(json_text(answer))
    elif answer["on"]:
        print("offloading is on: flows get rules as they are reported")
    else:
        print(f"offloading is off: {answer['rules_removed']:,} flows go back to the slow path")


@app.command()
def reload(config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Let the daemon read its TOML again: VIPs, reals, weights and most of [offload] change without a restart.

    That is the file that it was started with; the answer names it.
    A real that is no longer named gets no packet any more when this returns; connections of the others stay.
    What is wrong, or takes a restart, is named, and everything stays as it was. SIGHUP does the same.

    Example: nfcore reload lb.toml
    """
    answer = _ask(config, socket, "reload")
    if as_json:
        print(json_text(answer))
    elif answer["changed"]:
        ended = answer["flows_ended"]
        changed = ", ".join(answer["changed"])
        print(f"{answer['source']}: changed: {changed}; {ended:,} accelerated flows ended")
    else:
        print(f"{answer['source']}: nothing has changed")
