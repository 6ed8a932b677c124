# SPDX-License-Identifier: Apache-2.0
"""Rules a second of every installed offload backend, by the calls that the daemon makes."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from ..api.rules import RULE_ROW, Action, Device, Outcome, Outcomes, RuleBatch, make_cookies
from ..config.loader import load_config
from ..daemon.bootstrap import find_devices, make_context, set_up
from ..errors import HostError, NfcoreError
from ..hooks import discovery
from ..hooks.manager import PluginManager
from .processes import Say
from .results import RuleRate, Skipped
from .sizes import Sizes
from .tc_batch import clock, measure_tc
from .testbed import NETWORK, Site, open_site
from .traffic import flow_keys
from .workload import Workload

YARDSTICK = "tc_offload"
"""The backend for whose rules `tc -b` is a yardstick: they are the same."""
ELSEWHERE = "with flower in the kernel: sudo scripts/guest.sh run -- .venv/bin/python scripts/bench_tc.py 10000 50000"


def make_rules(count: int, workload: Workload) -> RuleBatch:
    """Give `count` rules for TCP flows to one service, a mark each of the first 65,535."""
    number = np.arange(count)
    rows = np.zeros(count, dtype=RULE_ROW)
    rows["key"] = flow_keys(number, workload.services(1, 4), 4)
    rows["family"], rows["action"], rows["mark"] = 4, Action.SET_MARK, 1 + number % 0xFFFF
    rows["cookie"] = make_cookies(number, np.ones(count, dtype=np.uint16))
    return RuleBatch(rows)


def backends() -> list[str]:
    """Names of the installed plugins that install rules."""
    plugins = PluginManager()
    for name in discovery.installed():
        plugins.load(name)
    return plugins.implementing("install_offload")


def measure_rules(nf: str, workload: Workload, sizes: Sizes, say: Say) -> tuple[list[RuleRate], list[Skipped]]:
    """Measure each backend before the bench's network. In a process of its own."""
    rates: list[RuleRate] = []
    skipped: list[Skipped] = []
    with open_site() as site:
        for backend in backends():
            say(backend)
            try:
                rates += _measure(site, nf, workload, backend, sizes)
            except NfcoreError as error:
                where = f"; {ELSEWHERE}" if backend == YARDSTICK else ""
                skipped.append(Skipped(f"rules, {backend}", f"{error}{where}"))
    return rates, skipped


def _measure(site: Site, nf: str, workload: Workload, backend: str, sizes: Sizes) -> list[RuleRate]:
    """HostError says why the backend cannot set marks here."""
    plugins = PluginManager()
    config = load_config(site.config(nf, workload.toml(1, 1), backend=backend), plugins)
    context = make_context(config, plugins, find_devices(config))
    (device,) = context.devices
    rates: list[RuleRate] = []
    with context.locks, ExitStack() as leaving:
        leaving.enter_context(set_up(context, plugins))
        able = plugins.call(backend, "probe_offload", device=device)
        if able is None or able.mark_width == 0:
            raise HostError("cannot set marks here: " + ("; ".join(able.notes) if able else "it does not say why"))
        for count in sizes.rules:
            rules = make_rules(count, workload)
            seconds = _operate(plugins, backend, device, rules)
            batch = measure_tc(rules, NETWORK)["insert"] if backend == YARDSTICK else None
            rates += [
                RuleRate(backend, op, count, count / took, None if batch is None else batch / took)
                for op, took in seconds.items()
            ]
    return rates


def _operate(plugins: PluginManager, backend: str, device: Device, rules: RuleBatch) -> dict[str, float]:
    """Seconds by operation; HostError when an answer is not the expected one."""
    # What is made once is made before, as in a daemon that runs.
    first = RuleBatch(rules.rows[:2].copy())
    plugins.call(backend, "install_offload", device=device, rules=first)
    plugins.call(backend, "dump_offload", device=device)
    plugins.call(backend, "remove_offload", device=device, rules=first)
    answers: list[Outcomes] = []
    dumped: list[int] = []
    seconds = {
        "insert": clock(lambda: answers.append(plugins.call(backend, "install_offload", device=device, rules=rules))),
        "dump": clock(lambda: dumped.append(len(plugins.call(backend, "dump_offload", device=device)))),
        "delete": clock(lambda: answers.append(plugins.call(backend, "remove_offload", device=device, rules=rules))),
    }
    done = [int((answer.status == wanted).sum()) for answer, wanted in zip(answers, _EXPECTED, strict=True)]
    if [done[0], dumped[0], done[1]] != [len(rules)] * 3:
        words = f"of {len(rules)} rules {done[0]} were installed, {dumped[0]} dumped and {done[1]} removed"
        raise HostError(f"{words}: {'; '.join(answers[0].messages.values())}")
    return seconds


_EXPECTED = (Outcome.INSTALLED, Outcome.REMOVED)
