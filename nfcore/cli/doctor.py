# SPDX-License-Identifier: Apache-2.0
"""`nfcore doctor`: finds why nothing is forwarded. Each line is ok, or has the cause and what to do."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..api.carriers import Carrier
from ..api.config import Config
from ..api.findings import Finding, Status
from ..api.locks import NoLocks
from ..api.rules import Capabilities, Device
from ..control.client import daemon_answers, request
from ..daemon.bootstrap import find_devices, make_context, set_up_plugin
from ..daemon.chain import try_dispatcher
from ..daemon.preconditions import preconditions
from ..errors import HostError, NfcoreError, UnsupportedError, describe_error
from ..hooks.manager import PluginManager
from ..hooks.results import ResultError, check_result
from ..kernel import (
    BPF_SOURCES,
    XdpMode,
    XdpRefusedError,
    attach_xdp,
    attached_xdp,
    compile_program,
    detach_xdp,
    find_headers,
    removal_advice,
)
from ..kernel.btf import kernel_btf
from ..kernel.compiler import bcc_advice
from ..refusals import TO_LOAD, describe_lack, missing_capabilities
from .link_diagnosis import advise_mtu, examine_link

OK, WARNING, FAULT = Status.OK, Status.WARNING, Status.FAULT
_LOSSES = re.compile(r"_(drops|lost)_total$")
"""Metrics of packets and reports that were lost."""


def examine_machine() -> Iterator[Finding]:
    """Check what every configuration needs."""
    yield Finding("kernel", OK, f"{platform.release()} on {platform.machine()}")
    lacking = missing_capabilities(TO_LOAD)
    user = "root" if os.geteuid() == 0 else f"user {os.geteuid()}"
    yield Finding("privileges", FAULT if lacking else OK, describe_lack(lacking) if lacking else user)
    try:
        headers = find_headers()
        yield Finding("headers", OK, headers.origin)
    except HostError as error:
        yield Finding("headers", FAULT, str(error))
    if importlib.util.find_spec("bcc") is None:
        why = f"{sys.executable} cannot import bcc"
        yield Finding("bcc", FAULT, why, bcc_advice())
    else:
        yield Finding("bcc", OK, "can be imported")
    try:
        kernel_btf()
        yield Finding("type information", OK, "the kernel carries BTF")
    except UnsupportedError as error:
        yield Finding("type information", WARNING, str(error), "needed by the carrier skb-mark only")


def examine(config: Config, plugins: PluginManager) -> Iterator[Finding]:
    """Check the preconditions of `nfcore run`, or the daemon that runs; then interfaces, backends and functions."""
    yield from (Finding(remark.path, WARNING, remark.message) for remark in config.remarks)
    socket = Path(config.nf.socket)
    runs = daemon_answers(socket)
    programs: Mapping[str, Mapping[str, Any]] = {}
    if runs:
        finding, programs = _examine_daemon(socket)
        yield finding
        yield from _examine_drops(socket)
    try:
        devices = find_devices(config)
    except HostError as error:
        for line in str(error).splitlines():
            yield Finding("interface", FAULT, line)
        return
    if not devices:
        yield Finding("interface", FAULT, "the configuration names none", "add a table [[interfaces]]")
    if not runs:
        context = make_context(config, plugins, devices)
        with context.locks:
            found = {finding.what: finding for finding in preconditions(context, plugins)}
        yield from found.values()
    for device, interface in zip(devices, config.interfaces, strict=True):
        yield from examine_link(device)
        mode = XdpMode(interface.xdp_mode)
        if runs:
            yield _examine_attached(device, programs.get(device.name, {}).get("id"))
        elif found[f"{device.name}: lock"].status is FAULT:
            continue  # what is tried below would disturb the process that has it
        elif attached_xdp(device.ifindex) is None:
            yield _try_xdp(device, mode)
        if len(interface.chain) > 1:
            yield _examine_chain(config, device, interface.chain, programs.get(device.name, {}).get("missing", ()))
        yield from _examine_backends(config, plugins, device)
    context = make_context(config, plugins, devices, tracing=True)
    for plugin in plugins.implementing("diagnose"):
        done, findings = plugins.try_call(plugin, "diagnose", context=context)
        yield from (findings or ()) if done else [Finding(plugin, FAULT, "its hook diagnose failed", "see the log")]


def survive(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Pass findings on; when the machine does not even let them be made, that is the last one."""
    try:
        yield from findings
    except (NfcoreError, OSError) as error:
        yield Finding("doctor", FAULT, str(error) if isinstance(error, NfcoreError) else describe_error(error))


def _examine_daemon(socket: Path) -> tuple[Finding, Mapping[str, Mapping[str, Any]]]:
    """Request a running daemon's health; with it, interface → what it tells of the program that is attached there."""
    try:
        health = request(socket, "health")
    except HostError as error:
        return Finding("daemon", FAULT, f"runs, but does not report its health: {error}", "look at its log"), {}
    status = FAULT if health["troubles"] else WARNING if health["warnings"] else OK
    found = "; ".join([*health["troubles"], *health["warnings"]])
    return Finding("daemon", status, f"running: {found}" if found else "running"), health["programs"]


def _examine_drops(socket: Path) -> Iterator[Finding]:
    """Tell what the running daemon's own counters of lost packets and reports say; nothing without the plugin stats."""
    try:
        metrics = request(socket, "stats")["metrics"]
    except HostError:
        return
    lost = [
        (metric["name"], " ".join(sample["labels"].values()), int(sample["value"]))
        for metric in metrics
        if _LOSSES.search(metric["name"])
        for sample in metric["samples"]
        if sample.get("value")
    ]
    found = ", ".join(f"{name} {labels} {value:,}".replace("  ", " ") for name, labels, value in lost)
    advice = "docs/metrics.md says what each of them means; nfcore stats CONFIG shows whether they grow"
    yield Finding("daemon: drops", WARNING if lost else OK, found or "none", advice if lost else "")


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


def _examine_attached(device: Device, own: int | None) -> Finding:
    """`own`: ID of the program that the running daemon has attached; None when it does not tell."""
    what, there = f"{device.name}: XDP", attached_xdp(device.ifindex)
    if own is not None and (there is None or there.id != own):
        found = f"the daemon's program {own} is no longer attached, so no packet reaches it"
        if there is None:
            return Finding(what, FAULT, found, "restart nfcore")
        replaced = f"{found}: program {there.id} is in its place"
        return Finding(what, FAULT, replaced, f"{removal_advice(device.ifindex)}; then restart nfcore")
    if there is None:
        return Finding(what, FAULT, "no program is attached, so no packet reaches the daemon", "restart nfcore")
    return _judge_mode(what, there.mode, f"program {there.id} attached in {there.mode} mode")


def _judge_mode(what: str, mode: XdpMode, found: str) -> Finding:
    if mode is XdpMode.GENERIC:
        return Finding(what, WARNING, f"{found}: it is slow, and most carriers do not work in it")
    return Finding(what, OK, found)


def _try_xdp(device: Device, mode: XdpMode) -> Finding:
    """Try for a moment to attach a program that passes every packet."""
    what = f"{device.name}: XDP"
    try:
        with compile_program(BPF_SOURCES / "pass.c", "pass", defines={}, maps={}) as program:
            used = attach_xdp(device.ifindex, program, mode=mode)
            detach_xdp(device.ifindex, expected=program)
    except XdpRefusedError as error:
        generic = 'set xdp_mode = "generic": works, but slowly'
        advice = f"{advise_mtu(device)}, or {generic}" if "MTU" in str(error) else generic
        return Finding(what, FAULT, str(error), "" if mode is XdpMode.GENERIC else advice)
    except NfcoreError as error:
        return Finding(what, FAULT, str(error))
    return _judge_mode(what, used, f"a program can be attached in {used} mode")


def _examine_backends(config: Config, plugins: PluginManager, device: Device) -> Iterator[Finding]:
    if not device.backends:
        found = "the configuration names no backend: no flow is accelerated"
        yield Finding(f"{device.name}: offload", WARNING, found, "set interfaces[].offload")
    for backend in device.backends:
        what = f"{device.name}: {backend}"
        context = make_context(config, plugins, [device])
        context.locks, context.looking = NoLocks(), True  # a daemon may run
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
