# SPDX-License-Identifier: Apache-2.0
"""`nfcore doctor`: finds why nothing is forwarded. Each line is ok, or has the cause and what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..api.carriers import Carrier, examine_carrier
from ..api.config import Config
from ..api.findings import Finding, Status
from ..api.locks import NoLocks
from ..api.rules import Capabilities, Device
from ..control.client import daemon_answers, request
from ..daemon.bootstrap import find_devices, make_context, set_up_plugin
from ..daemon.chain import try_dispatcher
from ..errors import HostError, NfcoreError, UnsupportedError
from ..hooks.manager import PluginManager
from ..hooks.results import ResultError, check_result
from ..kernel import BPF_SOURCES, XdpMode, attach_xdp, attached_xdp, compile_program, detach_xdp, find_headers
from ..kernel.btf import kernel_btf
from ..kernel.ethtool import LinkFacts, link_facts
from ..kernel.xdp import foreign_program_advice

OK, WARNING, FAULT = Status.OK, Status.WARNING, Status.FAULT
SMALLEST_MTU = 1500
"""Bytes; a smaller MTU draws a warning."""


def examine_machine() -> Iterator[Finding]:
    """Check what every configuration needs."""
    yield Finding("kernel", OK, f"{platform.release()} on {platform.machine()}")
    root = os.geteuid() == 0
    yield Finding("privileges", OK if root else FAULT, "root" if root else "not root", "" if root else "use sudo")
    try:
        headers = find_headers()
        yield Finding("headers", OK, headers.origin)
    except HostError as error:
        yield Finding("headers", FAULT, str(error), "install linux-libc-dev")
    if importlib.util.find_spec("bcc") is None:
        why = f"{sys.executable} cannot import bcc"
        yield Finding("bcc", FAULT, why, "install python3-bpfcc; a venv needs --system-site-packages")
    else:
        yield Finding("bcc", OK, "can be imported")
    try:
        kernel_btf()
        yield Finding("type information", OK, "the kernel carries BTF")
    except UnsupportedError as error:
        yield Finding("type information", WARNING, str(error), "needed by the carrier skb-mark only")


def examine(config: Config, plugins: PluginManager) -> Iterator[Finding]:
    """Check daemon, interfaces, backends and network functions of a configuration."""
    yield from (Finding(remark.path, WARNING, remark.message) for remark in config.remarks)
    finding, programs = _examine_daemon(Path(config.nf.socket))
    running = {interface: program["id"] for interface, program in programs.items()}
    yield finding
    try:
        devices = find_devices(config)
    except HostError as error:
        for line in str(error).splitlines():
            yield Finding("interface", FAULT, line, "nfcore must run in the interface's network namespace")
        return
    if not devices:
        yield Finding("interface", FAULT, "the configuration names none", "add a table [[interfaces]]")
    carrier = Carrier(config.marking.carrier)
    offloads = any(device.backends for device in devices)
    for device, interface in zip(devices, config.interfaces, strict=True):
        yield from _examine_link(device, XdpMode(interface.xdp_mode), running.get(device.name))
        if len(interface.chain) > 1:
            yield _examine_chain(config, device, interface.chain, programs.get(device.name, {}).get("missing", ()))
        yield from _examine_backends(config, plugins, device)
        if offloads and (carrier_finding := examine_carrier(carrier, device)):
            yield carrier_finding
    context = make_context(config, plugins, devices, tracing=True)
    for _, findings in plugins.call_each("diagnose", context=context):
        yield from findings or ()


def _examine_daemon(socket: Path) -> tuple[Finding, Mapping[str, Mapping[str, Any]]]:
    """Request a running daemon's health; with it, interface → what it tells of the program that is attached there."""
    if not daemon_answers(socket):
        return Finding("daemon", OK, "not running", "nfcore run"), {}
    try:
        health = request(socket, "health")
    except HostError as error:
        return Finding("daemon", FAULT, f"runs, but does not report its health: {error}", "look at its log"), {}
    status = FAULT if health["troubles"] else WARNING if health["warnings"] else OK
    found = "; ".join([*health["troubles"], *health["warnings"]])
    return Finding("daemon", status, f"running: {found}" if found else "running"), health["programs"]


def _examine_link(device: Device, mode: XdpMode, own_program: int | None) -> Iterator[Finding]:
    """`own_program`: ID of the program that a running daemon has attached."""
    name = device.name
    facts = link_facts(device.ifindex, name)
    yield Finding(
        f"{name}: link",
        OK if facts.up else FAULT,
        f"{'up' if facts.up else 'down'}, driver {facts.driver or 'unknown'}, MTU {facts.mtu}",
        "" if facts.up else f"ip link set {name} up",
    )
    if facts.mtu < SMALLEST_MTU:
        advice = f"ip link set {name} mtu {SMALLEST_MTU}"
        yield Finding(f"{name}: MTU", WARNING, f"{facts.mtu}: full-sized packets do not arrive", advice)
    yield _examine_xdp(device, mode, own_program)
    yield from _examine_features(name, facts)


def _examine_chain(config: Config, device: Device, chain: Sequence[str], missing: Sequence[str]) -> Finding:
    """Check that the program in front of several functions loads, and that a running daemon's chain is whole."""
    what, order = f"{device.name}: chain", " → ".join(chain)
    if missing:
        lost = f"{order}, but {', '.join(missing)} is missing: packets end there, in the kernel's stack"
        return Finding(what, FAULT, lost, "restart nfcore")
    carrier = Carrier(config.marking.carrier) if device.backends else None
    try:
        size = try_dispatcher(chain, carrier)
    except NfcoreError as error:
        return Finding(what, FAULT, str(error))
    return Finding(what, OK, f"{order}; the program in front of them loads, {size:,} bytes")


def _examine_features(name: str, facts: LinkFacts) -> Iterator[Finding]:
    lro = facts.features.get("rx-lro")
    if lro:
        found = "on: packets are merged before XDP sees them"
        yield Finding(f"{name}: LRO", FAULT, found, f"ethtool -K {name} lro off")
    elif lro is not None:
        yield Finding(f"{name}: LRO", OK, "off")
    gro = facts.features.get("rx-gro")
    if gro is not None:
        yield Finding(f"{name}: GRO", OK, "on" if gro else "off")
    offload = facts.features.get("hw-tc-offload")
    if offload is not None:
        can = "hw-tc-offload" not in facts.fixed
        found = "on" if offload else f"off{'' if can else ' and fixed'}: TC filters stay in software"
        advice = f"ethtool -K {name} hw-tc-offload on" if can and not offload else ""
        yield Finding(f"{name}: hw-tc-offload", OK, found, advice)


def _examine_xdp(device: Device, mode: XdpMode, own_program: int | None) -> Finding:
    """Find what is attached; without a program, try for a moment to attach one that passes every packet."""
    what = f"{device.name}: XDP"
    attached = attached_xdp(device.ifindex)
    if own_program is not None and (attached is None or attached.id != own_program):
        found = f"the daemon's program {own_program} is no longer attached, so no packet reaches it"
        if attached is None:
            return Finding(what, FAULT, found, "restart nfcore")
        replaced = f"{found}: program {attached.id} is in its place"
        return Finding(what, FAULT, replaced, f"{foreign_program_advice(device.name)}; then restart nfcore")
    if attached is not None:
        status = OK if attached.mode is XdpMode.NATIVE or mode is not XdpMode.NATIVE else WARNING
        return Finding(what, status, f"program {attached.id} attached in {attached.mode} mode")
    try:
        with compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={}) as program:
            used = attach_xdp(device.ifindex, program, mode=mode)
            detach_xdp(device.ifindex, expected=program.id)
    except NfcoreError as error:
        return Finding(what, FAULT, str(error), 'set xdp_mode = "generic": works, but slowly')
    if used is XdpMode.GENERIC and mode is not XdpMode.GENERIC:
        return Finding(what, WARNING, "only generic mode works: it is slow, and most carriers do not work in it")
    return Finding(what, OK, f"a program can be attached in {used} mode")


def _examine_backends(config: Config, plugins: PluginManager, device: Device) -> Iterator[Finding]:
    if not device.backends:
        found = "the configuration names no backend: no flow is accelerated"
        yield Finding(f"{device.name}: offload", WARNING, found, "set interfaces[].offload")
    for backend in device.backends:
        what = f"{device.name}: {backend}"
        context = make_context(config, plugins, [device])
        context.locks = NoLocks()  # a daemon may run
        try:
            with ExitStack() as teardown:
                set_up_plugin(backend, context, plugins, teardown)
                capabilities = check_result("probe_offload", {}, plugins.call(backend, "probe_offload", device=device))
        except ResultError as error:
            yield Finding(what, FAULT, f"plugin {backend}: probe_offload {error}")
            continue
        except NfcoreError as error:
            yield Finding(what, FAULT, str(error))
            continue
        if capabilities is None:
            yield Finding(what, WARNING, "does not report what it can do")
        else:
            yield _judge(what, capabilities, config.marking.width)


def _judge(what: str, capabilities: Capabilities, width: int) -> Finding:
    found = capabilities.describe()
    if capabilities.mark_width == 0:
        return Finding(what, WARNING, f"{found}: flows stay on the slow path")
    if capabilities.mark_width < width:
        return Finding(what, FAULT, found, f"set marking.width to {capabilities.mark_width} or less")
    return Finding(what, OK, found)
