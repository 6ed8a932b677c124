# SPDX-License-Identifier: Apache-2.0
"""Rules a second of every installed offload backend, with the calls that the daemon makes."""

from __future__ import annotations

import numpy as np

from ..api.rules import RULE_ROW, Action, Device, Outcome, Outcomes, RuleBatch, make_cookies
from ..config.loader import load_config
from ..daemon.bootstrap import find_devices, make_context, set_up
from ..errors import HostError, NfcoreError
from ..hooks import discovery
from ..hooks.manager import PluginManager
from .processes import ShowProgress
from .results import RuleRate, Skipped
from .sizes import Sizes
from .tc_batch import clock, measure_tc
from .testbed import NETWORK, Testbed, open_testbed
from .traffic import flow_keys
from .workload import Workload

TC_BACKEND = "tc_offload"
"""The backend that is compared with `tc -b`: it installs the same rules."""
FLOWER_HINT = "with flower in the kernel: sudo scripts/guest.sh run -- .venv/bin/python scripts/bench_tc.py 10000 50000"


def make_rules(count: int, workload: Workload) -> RuleBatch:
    """Return `count` rules for TCP flows to one service, with marks 1 … 65,535 in turn."""
    number = np.arange(count)
    rows = np.zeros(count, dtype=RULE_ROW)
    rows["key"] = flow_keys(number, workload.services(1, 4), 4)
    rows["family"], rows["action"], rows["mark"] = 4, Action.SET_MARK, 1 + number % 0xFFFF
    rows["cookie"] = make_cookies(number, np.ones(count, dtype=np.uint16))
    return RuleBatch(rows)


def backends() -> list[str]:
    """Return the names of the installed plugins that install rules."""
    plugins = PluginManager()
    for name in discovery.installed():
        plugins.load(name)
    return plugins.implementing("install_offload")


def measure_rules(
    nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress
) -> tuple[list[RuleRate], list[Skipped]]:
    """Measure each backend in the bench's network. Run it in a process of its own."""
    rates: list[RuleRate] = []
    skipped: list[Skipped] = []
    with open_testbed() as testbed:
        for backend in backends():
            show_progress(backend)
            try:
                rates += _measure(testbed, nf, workload, backend, sizes)
            except NfcoreError as error:
                hint = f"; {FLOWER_HINT}" if backend == TC_BACKEND else ""
                skipped.append(Skipped(f"rules, {backend}", f"{error}{hint}"))
    return rates, skipped


def _measure(testbed: Testbed, nf: str, workload: Workload, backend: str, sizes: Sizes) -> list[RuleRate]:
    """Measure one backend. HostError gives the reason when it cannot set marks here."""
    plugins = PluginManager()
    config = load_config(testbed.config(nf, workload.toml(1, 1), backend=backend), plugins)
    context = make_context(config, plugins, find_devices(config))
    (device,) = context.devices
    rates: list[RuleRate] = []
    with context.locks, set_up(context, plugins):
        caps = plugins.call(backend, "probe_offload", device=device)
        if caps is None or caps.mark_width == 0:
            raise HostError("cannot set marks here: " + ("; ".join(caps.notes) if caps else "no reason given"))
        for count in sizes.rules:
            rules = make_rules(count, workload)
            times = _time_operations(plugins, backend, device, rules)
            tc_seconds = measure_tc(rules, NETWORK)["insert"] if backend == TC_BACKEND else None
            rates += [
                RuleRate(backend, op, count, count / seconds, None if tc_seconds is None else tc_seconds / seconds)
                for op, seconds in times.items()
            ]
    return rates


def _time_operations(plugins: PluginManager, backend: str, device: Device, rules: RuleBatch) -> dict[str, float]:
    """Return the seconds of each operation. HostError when a result is not the expected one."""
    # The backend prepares what it needs only once, as in a running daemon, before the clock runs.
    first = RuleBatch(rules.rows[:2].copy())
    plugins.call(backend, "install_offload", device=device, rules=first)
    plugins.call(backend, "dump_offload", device=device)
    plugins.call(backend, "remove_offload", device=device, rules=first)
    outcomes: list[Outcomes] = []
    dumped: list[int] = []
    seconds = {
        "insert": clock(lambda: outcomes.append(plugins.call(backend, "install_offload", device=device, rules=rules))),
        "dump": clock(lambda: dumped.append(len(plugins.call(backend, "dump_offload", device=device)))),
        "delete": clock(lambda: outcomes.append(plugins.call(backend, "remove_offload", device=device, rules=rules))),
    }
    installed = int((outcomes[0].status == Outcome.INSTALLED).sum())
    removed = int((outcomes[1].status == Outcome.REMOVED).sum())
    if {installed, dumped[0], removed} != {len(rules)}:
        message = f"of {len(rules)} rules {installed} were installed, {dumped[0]} dumped and {removed} removed"
        raise HostError(f"{message}: {'; '.join(outcomes[0].messages.values())}")
    return seconds
