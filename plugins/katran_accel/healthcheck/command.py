# SPDX-License-Identifier: Apache-2.0
"""The command `nfcore healthcheck`."""

from __future__ import annotations

from nfcore.cli.options import JsonOption, OptionalConfig, SocketOption, find_socket
from nfcore.cli.tables import TextTable, show
from nfcore.control.client import request
from nfcore.text import json_text


def healthcheck(config: OptionalConfig = None, socket: SocketOption = None, as_json: JsonOption = False) -> None:
    """Show which SO_MARK leads a health checker's packets to which real, and what was counted.

    A checker sets the mark on its socket and connects to the VIP: its packets go to this real, by the same tunnel as
    those of clients.

    Examples:

      nfcore healthcheck lb.toml

      nfcore healthcheck --json
    """
    report = request(find_socket(config, socket), "healthcheck")
    if as_json:
        print(json_text(report))
        return
    table = TextTable("real", "SO_MARK")
    for row in report["marks"]:
        table.add_row(row["real"], str(row["mark"]))
    show(table)
    for row in report["probes"]:
        print(f"{row['vip']}: {row['packets']:,} packets of probes")
    packets = report["packets"]
    counted = f"{packets['processed']:,} encapsulated by {report['encapsulation']}, {packets['dropped']:,} dropped"
    print(f"{report['interface']}: {counted}, {packets['skipped']:,} others")
    if not report["attached"]:
        print(f"the program is no longer at the egress of {report['interface']}: restart nfcore")
