# SPDX-License-Identifier: Apache-2.0
"""The seam to the kernel: compile, load, attach and test XDP programs; create, pin, read and write maps.

::

      BPF C ──► compiler ──► Program ──► xdp (attach, replace, detach) ──► interface
                  │  ▲          └──────► test_run (a packet, no interface)
     headers ─────┘  │
                     │ fds
      MapSpec ───► Map ◄────► numpy arrays (batches, slices, mmap)
                    │ └─────► event_buffers (ring buffer, perf buffers) ──► numpy records
                    └───────► pins on a bpf file system

Knows neither network functions nor NICs. bcc is needed only to compile, and only the compiler's child process imports
it: this package imports without it.
"""

from .call_pins import CallPin, remove_call_pins
from .compiler import BPF_SOURCES, CompileError, VerifierError, compile_as, compile_program
from .cpus import online_cpus, possible_cpus
from .event_buffers import EventReader, PerfReader, RingBufferReader
from .headers import Headers, find_headers
from .libbpf import ObjectError, ObjectFile, examine_header
from .maps import BatchResult, Map, pinned_entries, pinned_flags
from .mapspec import MapFlags, MapSpec, MapType, UpdateFlags
from .objects import Closing
from .ownership import Owner, Ownership, owner_of
from .pins import check_bpffs, ensure_bpffs, obj_get, obj_pin, remove_bpffs
from .program_maps import program_map
from .programs import Program, TestRun, XdpAction
from .tc_egress import attach_egress, detach_egress, egress_programs
from .tc_programs import TcAction, TcProgram, TcTestRun
from .xdp import XdpRefusedError, attach_xdp, detach_xdp
from .xdp_query import (
    AttachedXdp,
    XdpMode,
    attached_programs,
    attached_xdp,
    interface_exists,
    interface_index,
    interface_name,
)
from .xdp_removal import occupied_message, removal_advice

__all__ = [
    "BPF_SOURCES",
    "AttachedXdp",
    "BatchResult",
    "CallPin",
    "Closing",
    "CompileError",
    "EventReader",
    "Headers",
    "Map",
    "MapFlags",
    "MapSpec",
    "MapType",
    "ObjectError",
    "ObjectFile",
    "Owner",
    "Ownership",
    "PerfReader",
    "Program",
    "RingBufferReader",
    "TcAction",
    "TcProgram",
    "TcTestRun",
    "TestRun",
    "UpdateFlags",
    "VerifierError",
    "XdpAction",
    "XdpMode",
    "XdpRefusedError",
    "attach_egress",
    "attach_xdp",
    "attached_programs",
    "attached_xdp",
    "check_bpffs",
    "compile_as",
    "compile_program",
    "detach_egress",
    "detach_xdp",
    "egress_programs",
    "ensure_bpffs",
    "examine_header",
    "find_headers",
    "interface_exists",
    "interface_index",
    "interface_name",
    "obj_get",
    "obj_pin",
    "occupied_message",
    "online_cpus",
    "owner_of",
    "pinned_entries",
    "pinned_flags",
    "possible_cpus",
    "program_map",
    "removal_advice",
    "remove_bpffs",
    "remove_call_pins",
]
