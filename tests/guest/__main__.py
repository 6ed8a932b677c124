# SPDX-License-Identifier: Apache-2.0
"""What scripts/guest.sh calls: prepare the cache, run a command in the guest, open a shell there."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from nfcore.errors import HostError
from tests.guest.simnic.build import build_module

from .kernel import build_init, cached_kernel, fetch_kernel
from .machine import Guest, kvm_works


def main() -> int:
    """Serve the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="guest.sh", description="Debian's kernel in QEMU, over the host's files.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="get kernel, process 1 and the simulated NIC into the cache")
    prepare.add_argument("--newest", action="store_true", help="also when the cache has an older kernel")
    run = commands.add_parser("run", help="run a command in the guest; its exit status is this one's")
    run.add_argument("argv", nargs="+", metavar="COMMAND", help="after --, as in: run -- tc -V")
    commands.add_parser("shell", help="open a shell in the guest, on this terminal")
    options = parser.parse_args()
    try:
        if options.command == "prepare":
            return _prepare(options.newest)
        if options.command == "shell":
            return _run(["/bin/bash"], terminal=True)
        return _run(options.argv, terminal=False)
    except HostError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _prepare(newest: bool) -> int:
    kernel = cached_kernel()
    if kernel is None or newest:
        print("guest: fetching the kernel", file=sys.stderr)
        kernel = fetch_kernel()
    build_init()
    try:
        build_module(kernel)
    except HostError as error:
        # The guest is of use without it.
        print(f"guest: no simulated NIC, its tests cannot run: {error}", file=sys.stderr)
    how = "KVM" if kvm_works(kernel) else "TCG"
    print(f"guest: ready, Linux {kernel.release} under {how}", file=sys.stderr)
    return 0


def _run(argv: list[str], *, terminal: bool) -> int:
    if terminal and not sys.stdin.isatty():
        raise HostError("a shell needs a terminal: use run -- COMMAND")
    environment = {"TERM": os.environ.get("TERM", "dumb")}
    with Guest(argv, cwd=Path.cwd(), environment=environment, terminal=terminal) as guest:
        return guest.wait()


if __name__ == "__main__":
    sys.exit(main())
