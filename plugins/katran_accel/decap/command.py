# SPDX-License-Identifier: Apache-2.0
"""The command `nfcore decap`."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated

import typer

from nfcore.api.flows import Address
from nfcore.cli.options import JsonOption
from nfcore.errors import ConfigError, Problem
from nfcore.text import json_text


class ModeChoice(StrEnum):
    """Option --mode."""

    NATIVE = "native"
    GENERIC = "generic"
    AUTO = "auto"


def decap(
    interface: Annotated[str, typer.Argument(metavar="IF", help="The interface at which the balancer's packets come.")],
    gue: Annotated[
        int | None, typer.Option(metavar="PORT", min=1, max=65_535, help="Also GUE to this UDP port; Katran's is 6080.")
    ] = None,
    dst: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDR", help="Only tunnels to this address of the host; repeatable. Default: to any."),
    ] = None,
    server_id: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=0xFFFF_FFFF, help="This server's id: count TCP packets with another."),
    ] = None,
    drop_fragments: Annotated[
        bool,
        typer.Option(
            "--drop-fragments",
            help="Drop every fragment and packet with IP options, as Katran does; default: only those of tunnels.",
        ),
    ] = False,
    mode: Annotated[ModeChoice, typer.Option(help="auto: native, or generic if the driver refuses.")] = ModeChoice.AUTO,
    stats: Annotated[bool, typer.Option("--stats", help="Show what the running one has counted, and exit.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Detach what a killed run left, and exit.")] = False,
    as_json: JsonOption = False,
) -> None:
    """On a real: remove the balancer's outer headers at IF, until SIGINT or SIGTERM.

    For a real whose kernel has no tunnel for them. Takes IPIP, and with --gue GUE, v4 and v6 in each other. Prints a
    line with "ready" on standard error once it works, and what it has counted when it ends. It does not touch other
    packets, but packets of tunnels that it cannot decapsulate are dropped and counted: fragments, IP options,
    malformed ones.

    When it is killed, the program goes on; the next run replaces it without losing a packet and continues its counters.

    Examples:

      nfcore decap eth0

      nfcore decap eth0 --gue 6080 --dst 198.18.20.11 --dst 2001:db8:20::11

      nfcore decap eth0 --stats --json
    """
    if stats and remove:
        raise ConfigError("decap", [Problem("--remove", "does not go with --stats: use one of them")])
    destinations = _addresses(dst or [])
    from nfcore.kernel import XdpMode  # noqa: PLC0415 - `--help` must not need numpy

    from .program import DecapCounts, DecapOptions  # noqa: PLC0415
    from .running import read, run  # noqa: PLC0415
    from .running import remove as remove_leftover  # noqa: PLC0415

    def show(counts: DecapCounts) -> None:
        print(json_text({"interface": interface} | counts.to_json()) if as_json else f"{interface}: {counts}")

    if remove:
        program = remove_leftover(interface)
        if as_json:
            print(json_text({"interface": interface, "removed": program}))
        else:
            print("nothing was left" if program is None else f"removed program {program} from {interface}")
    elif stats:
        show(read(interface))
    else:
        options = DecapOptions(gue, server_id, destinations, drop_fragments)
        show(run(interface, options, XdpMode(mode)))


def _addresses(texts: list[str]) -> tuple[Address, ...]:
    found: dict[Address, None] = {}
    problems = []
    for text in texts:
        try:
            address = ipaddress.ip_address(text if "%" not in text else "")
            if address.is_multicast or address.is_unspecified:
                raise ValueError
            found[address] = None
        except ValueError:
            right = "an IPv4 or IPv6 address of this host, such as 198.18.20.11"
            problems.append(Problem("--dst", f"is {text!r:.60}; should be {right}"))
    if problems:
        raise ConfigError("decap", problems)
    return tuple(found)
