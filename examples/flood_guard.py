# SPDX-License-Identifier: Apache-2.0
"""Drops the sources that flood, for ten minutes, and gives the packets of preferred clients another DSCP.

It knows nothing but what the daemon counts. Where the NIC can drop, a flood that is found costs no CPU any more.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from nfcore.client import Flow, FlowClient
from nfcore.errors import NfcoreError

EVERY = 1.0
"""Seconds between two looks."""


def wanted(daemon: FlowClient, limit: int, ttl: str, prefer: Sequence[str], dscp: int) -> Iterator[Flow]:
    """Give the entries that there should be now."""
    for client in prefer:
        yield Flow(f"prefer {client}", src=client, action="set_dscp", dscp=dscp, ttl=ttl)
    rates: Counter[str] = Counter()
    for flow in daemon.flows(states=["installed"], sort="rate", limit=10_000):
        if flow["nf"] == "flow_actions":
            continue  # somebody has said what is to be done with it
        rates[flow["src"]] += round(flow["rate"])
    for source, rate in rates.most_common():
        if rate > limit and source not in prefer:
            yield Flow(f"flood {source}", src=source, action="drop", ttl=ttl)


def main(
    socket: Annotated[str, typer.Option(help="The daemon's socket.")] = "/run/nfcore/nfcore.sock",
    limit: Annotated[int, typer.Option(help="Packets a second above which a source floods.")] = 1_000,
    ttl: Annotated[str, typer.Option(help="How long an entry lives.")] = "10m",
    prefer: Annotated[list[str] | None, typer.Option(help="A client to prefer; may be repeated.")] = None,
    dscp: Annotated[int, typer.Option(help="The DSCP of preferred clients.")] = 46,
) -> None:
    """Guard the network functions of a daemon until Ctrl-C."""
    try:
        with FlowClient(socket) as daemon:
            while True:
                there = {entry.name for entry in daemon.list()}
                new = [flow for flow in wanted(daemon, limit, ttl, prefer or [], dscp) if flow.name not in there]
                daemon.add(*new)
                for flow in new:
                    print(f"{flow.name}: {flow.action}", flush=True)
                time.sleep(EVERY)
    except NfcoreError as error:
        sys.exit(f"flood_guard: {error}")


if __name__ == "__main__":
    typer.run(main)
