# SPDX-License-Identifier: Apache-2.0
"""Attaches the decapsulation program to an interface until SIGTERM, and removes what a killed run left."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from nfcore.api.locks import Locks
from nfcore.errors import HostError, in_use
from nfcore.kernel import (
    Ownership,
    Program,
    XdpMode,
    attach_xdp,
    attached_xdp,
    detach_xdp,
    interface_exists,
    interface_index,
)
from nfcore.kernel.link_monitor import LinkMonitor

from .program import KIND, DecapCounts, DecapOptions, Decapsulation, find_attached, read_attached

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(interface: str, options: DecapOptions, mode: XdpMode) -> DecapCounts:
    """Decapsulate on an interface until a stop signal comes; the last counts.

    HostError: the interface has another program, another process has it, or it lost the program meanwhile.
    """
    ifindex = interface_index(interface)
    with Locks() as locks:
        locks.interface(interface, ifindex)
        return asyncio.run(_serve(interface, ifindex, options, mode))


async def _serve(interface: str, ifindex: int, options: DecapOptions, mode: XdpMode) -> DecapCounts:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    # Before anything is attached: a signal during the start is handled once that is done, and undone.
    for number in STOP_SIGNALS:
        # One that is ignored stays so: nohup, or a shell's job in the background.
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    lost: list[str] = []

    def check_link() -> None:
        change = links.poll().get(ifindex)
        problem = None if change is None else _problem(ifindex, program, gone=change.gone)
        if problem:
            lost.append(f"interface {interface} {problem}")
            stop.set()

    with LinkMonitor([ifindex]) as links, _attached(interface, ifindex, options, mode) as decapsulation:
        program = decapsulation.program.id
        loop.add_reader(links, check_link)
        await stop.wait()
        loop.remove_reader(links)
        counts = decapsulation.counts()
    if lost:
        raise HostError(f"{lost[0]}: nothing is decapsulated any more; so far: {counts}")
    return counts


@contextmanager
def _attached(interface: str, ifindex: int, options: DecapOptions, mode: XdpMode) -> Iterator[Decapsulation]:
    """Attach the program. It replaces that of a killed run, and continues its counters."""
    with ExitStack() as opened:
        previous = _left_by_killed(interface, ifindex)
        if previous is not None:
            opened.enter_context(previous)
        decapsulation = Decapsulation(options, previous)
    with decapsulation, Ownership(KIND, interface) as ownership:
        program = decapsulation.program
        ownership.claim(program)
        replaced = None if previous is None else previous.id
        there = attached_xdp(ifindex)
        if there is not None and there.id == replaced and mode not in (XdpMode.AUTO, there.mode):
            # A program cannot change its mode.
            detach_xdp(ifindex, expected=replaced)
        used = attach_xdp(ifindex, program, mode=mode, replace=replaced)
        try:
            again = "" if replaced is None else f", in place of program {replaced} that a killed run left"
            log.info("ready: %s: decapsulates %s in %s mode%s", interface, _describe(options), used, again)
            yield decapsulation
        finally:
            if interface_exists(ifindex):
                detach_xdp(ifindex, expected=program)


def remove(interface: str) -> int | None:
    """Detach what a killed run left on an interface: the program's id, None when there was none.

    HostError: a run goes on, or the interface has another program.
    """
    ifindex = interface_index(interface)
    with Locks() as locks:
        locks.interface(interface, ifindex)
        program = _left_by_killed(interface, ifindex)
        if program is None:
            return None
        with program:
            return program.id if detach_xdp(ifindex, expected=program.id) else None


def _left_by_killed(interface: str, ifindex: int) -> Program | None:
    """Open the program that a killed run left. HostError: a run goes on, or it is another program."""
    found = find_attached(ifindex)
    if found is None:
        return None
    program, owner = found
    if owner.lives:
        program.close()
        raise in_use(f"interface {interface}", owner.process)
    return program


def read(interface: str) -> DecapCounts:
    """Read the counters on an interface, whoever attached the program. HostError: there is none."""
    found = find_attached(interface_index(interface))
    if found is None:
        raise HostError(f"interface {interface} has no decapsulation: start it with nfcore decap {interface}")
    with found[0] as program:
        return read_attached(program)


def _problem(ifindex: int, program: int, *, gone: bool) -> str | None:
    """Tell what has become of the program; None when it is still there."""
    if gone or not interface_exists(ifindex):
        return "is gone, and with it the program"
    there = attached_xdp(ifindex)
    if there is None:
        return f"has lost program {program}: something detached it"
    return None if there.id == program else f"has program {there.id} now, which replaced program {program}"


def _describe(options: DecapOptions) -> str:
    parts = ["IPIP" if options.gue_port is None else f"IPIP and GUE (UDP port {options.gue_port})"]
    if options.destinations:
        parts.append("to " + ", ".join(map(str, options.destinations)))
    if options.server_id is not None:
        parts.append(f"as server {options.server_id}")
    return " ".join(parts)
