# SPDX-License-Identifier: Apache-2.0
"""TC programs at an interface's egress: by TCX, or by a filter of the classifier `bpf` where the kernel is too old."""

from __future__ import annotations

from . import cls_bpf, tcx
from .tc_programs import TcProgram


def egress_programs(ifindex: int, prio: int) -> list[int]:
    """Ids of the programs at the interface's egress, of filters only the one with this priority. HostError."""
    if tcx.has_tcx(ifindex):
        return tcx.tcx_programs(ifindex)
    found = cls_bpf.filter_program(ifindex, prio)
    return [found] if found else []


def attach_egress(ifindex: int, program: TcProgram, prio: int, *, replace: int | None = None) -> None:
    """Attach ``program``, in place of the one with id ``replace`` if it is given. `prio`: of a filter. HostError."""
    if tcx.has_tcx(ifindex):
        tcx.attach_tcx(ifindex, program, replace=replace)
    else:
        cls_bpf.attach_filter(ifindex, program, prio, replace=replace)


def detach_egress(ifindex: int, program: TcProgram | int, prio: int) -> bool:
    """Detach a program, or the one with this id; whether it was there. HostError."""
    if tcx.has_tcx(ifindex):
        return tcx.detach_tcx(ifindex, program)
    return cls_bpf.detach_filter(ifindex, program if isinstance(program, int) else program.id, prio)
