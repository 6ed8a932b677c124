# SPDX-License-Identifier: Apache-2.0
"""Describes the machine of a measurement: everything that is known to change the results."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path
from typing import Any

from ..version import __version__

MITIGATIONS = ("spectre_v1", "spectre_v2", "retbleed", "spec_store_bypass", "spec_rstack_overflow", "meltdown")
"""Files of /sys/devices/system/cpu/vulnerabilities: the retpolines of spectre_v2 make every helper call slower."""
JIT = ("bpf_jit_enable", "bpf_jit_harden")
"""Files of /proc/sys/net/core."""
COMMAND_LINE = re.compile(r"\b(mitigations|spectre_v2|nospectre_v2|isolcpus|nohz_full|idle)\b(=\S+)?")


def describe_machine() -> dict[str, Any]:
    """Return the state of the machine as JSON values; None for what cannot be read."""
    cpu = _cpu_info()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "allowed_cpus": sorted(os.sched_getaffinity(0)),
        "mhz": float(cpu["cpu MHz"]) if "cpu MHz" in cpu else None,
        "cache": cpu.get("cache size"),
        "hypervisor": "hypervisor" in cpu.get("flags", "").split(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": f"{platform.system()} {platform.release()} {platform.version()}",
        "command_line": " ".join(match[0] for match in COMMAND_LINE.finditer(_read("/proc/cmdline") or "")),
        "mitigations": {name: _read(f"/sys/devices/system/cpu/vulnerabilities/{name}") for name in MITIGATIONS},
        "jit": {name: _read(f"/proc/sys/net/core/{name}") for name in JIT},
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "nfcore": __version__,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpu_info() -> dict[str, str]:
    """Return the fields of the first CPU in /proc/cpuinfo."""
    first = (_read("/proc/cpuinfo") or "").split("\n\n", maxsplit=1)[0]
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
