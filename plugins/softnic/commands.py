# SPDX-License-Identifier: Apache-2.0
"""The commands `nfcore softnic create` and `nfcore softnic remove`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Create and remove an emulated NIC.",
    epilog="Example: nfcore softnic create --wire wire0 --port port0 --pin /run/nfcore/bpf/softnic-eth1",
    no_args_is_help=True,
)
Pin = Annotated[
    Path,
    typer.Option(
        "--pin", help="Folder of a bpf file system for the NIC's pins, by which the daemon finds it.", readable=False
    ),
]


@app.command()
def create(
    wire: Annotated[str, typer.Option(help="Interface towards the network.")],
    port: Annotated[str, typer.Option(help="Interface whose veth peer is the host's.")],
    pin: Pin,
    rules: Annotated[int, typer.Option(min=1, max=16_000_000, help="How many rules fit.")] = 65_536,
) -> None:
    """Create a NIC between two interfaces of this network namespace.

    Example: nfcore softnic create --wire wire0 --port port0 --pin /run/nfcore/bpf/softnic-eth1
    """
    from .nic import create_nic  # noqa: PLC0415 - `--help` must not need numpy

    create_nic(wire, port, pin, rules)


@app.command()
def remove(pin: Pin) -> None:
    """Remove the NIC pinned in a folder from the interfaces of this network namespace.

    Example: nfcore softnic remove --pin /run/nfcore/bpf/softnic-eth1
    """
    from .nic import remove_nic  # noqa: PLC0415

    for line in remove_nic(pin, iter([index for index, _ in socket.if_nameindex()])):
        print(f"removed {line}")
