# SPDX-License-Identifier: Apache-2.0
"""The command `nfcore capture`."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from nfcore.cli.options import JsonOption, OptionalConfig, SocketOption, find_socket
from nfcore.errors import ConfigError, Problem


def capture(
    config: OptionalConfig = None,
    write: Annotated[
        str | None,
        typer.Option("--write", "-w", metavar="FILE", help="Write pcap-ng to FILE; -: to standard output."),
    ] = None,
    vip: Annotated[
        str | None, typer.Option(metavar="VIP", help="Only this VIP, such as 198.18.10.1:80/tcp or 198.18.10.1.")
    ] = None,
    real: Annotated[str | None, typer.Option(metavar="ADDR", help="Only packets to this real.")] = None,
    verdict: Annotated[
        list[str] | None, typer.Option(metavar="VERDICT", help="Only drop, pass or tx; repeatable.")
    ] = None,
    reason: Annotated[
        list[str] | None, typer.Option(metavar="REASON", help="Only this reason, such as no_real; repeatable.")
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="End after so many packets.")] = 10_000,
    seconds: Annotated[float, typer.Option(metavar="S", min=0, help="End after so many seconds.")] = 60.0,
    most_bytes: Annotated[
        int, typer.Option("--bytes", metavar="N", min=1, help="End before more bytes than that are written.")
    ] = 1 << 24,
    sample: Annotated[int, typer.Option(metavar="N", min=1, help="Of packets that fit, one in N on each CPU.")] = 1,
    snaplen: Annotated[int, typer.Option(metavar="N", min=1, max=256, help="Bytes of each frame.")] = 128,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show packets of the running balancer, each with its verdict and the reason.

    Prints a line for each packet (--json: an object), or writes pcap-ng with the reason as the packet's comment. Frames
    are shown as they leave the balancer: those that it sends with their outer header. What was captured is said on
    standard error at the end, which Ctrl-C brings about, too. Needs [katran_accel] capture = true.

    Examples:

      nfcore capture lb.toml --verdict drop

      nfcore capture -w - --vip 198.18.10.1 | wireshark -k -i -

      nfcore capture -w lb.pcapng --reason no_real --reason no_next_hop --count 100 --seconds 3600
    """
    if write is not None and as_json:
        raise ConfigError("capture", [Problem("--json", "does not go with -w: use one of them")])
    if write == "-" and sys.stdout.isatty():
        message = "is -, and standard output is a terminal: pipe it into a program, or name a file"
        raise ConfigError("capture", [Problem("-w", message)])
    from .reading import Bounds, read_packets  # noqa: PLC0415 - `--help` must not need numpy
    from .sinks import open_sink  # noqa: PLC0415

    wanted: dict[str, object] = {"vip": vip, "real": real, "sample": sample, "snaplen": snaplen}
    wanted |= {"verdicts": verdict or [], "reasons": reason or []}
    with open_sink(write, snaplen, as_json=as_json) as sink:
        bounds = Bounds(count, time.monotonic() + seconds, most_bytes)
        print(read_packets(find_socket(config, socket), wanted, bounds, sink), file=sys.stderr)
