# SPDX-License-Identifier: Apache-2.0
"""The cost of metrics: a daemon with many VIPs, reals and rules, scraped once a second as Prometheus does."""

from __future__ import annotations

import re
import statistics
import time
from urllib.request import urlopen

import numpy as np

from ..errors import HostError
from .processes import ShowProgress
from .results import Figure, Target
from .sender import Sender
from .sizes import Sizes
from .testbed import NETWORK, open_testbed, wait_for
from .traffic import make_frames
from .workload import Workload

URL = "http://127.0.0.1:9464/metrics"
INTERVAL = 1.0
CPU_TARGET = 5.0
"""Percent of a core, at most."""
OFFLOAD = 'min_packets = 1\nidle_timeout = "10m"\ninserts_per_second = 0\nmax_rules = 200_000'
SETTLE = 5.0
"""Seconds after which the daemon has finished its work on the new flows."""


def measure_scraping(
    nf: str, workload: Workload, sizes: Sizes, show_progress: ShowProgress
) -> tuple[list[Figure], list[Target]]:
    """Compare the daemon's CPU time without scrapes and with them. Run it in a process of its own."""
    vips, reals = sizes.scrape_config
    rules, seconds = sizes.scrape_rules, sizes.scrape_seconds
    with open_testbed() as testbed, testbed.daemon(testbed.config(nf, workload.toml(vips, reals), offload=OFFLOAD)):
        frames = make_frames(np.arange(rules), workload.services(vips, 4), 4)
        show_progress(f"{rules:,} rules")
        with Sender(NETWORK, frames) as sender:

            def installed() -> bool:
                sender.send_for(1.0, most=rules)
                return testbed.metric("nfcore_flows", state="installed") == rules

            wait_for(f"{rules:,} rules", installed)
        time.sleep(min(SETTLE, seconds))
        show_progress("without scrapes")
        begin = _Scrape()
        time.sleep(seconds)
        show_progress("scraped once a second")
        middle = _Scrape()
        scrapes = _scrape_for(seconds)
    last = scrapes[-1]
    idle = 100 * (middle.cpu - begin.cpu) / (middle.at - begin.at)
    busy = 100 * (last.cpu - middle.cpu) / (last.at - middle.at)
    blocked = (last.collect_seconds - middle.collect_seconds) / (last.collections - middle.collections)
    request_seconds = statistics.median(scrape.seconds for scrape in scrapes)
    note = f"{vips} VIPs, {last.reals:,} reals, {rules:,} rules; {last.samples:,} samples, {last.size / 1e6:.1f} MB"
    name, cost = "metrics scraped once a second", round(max(0.0, busy - idle), 2)
    return [
        Figure(name, cost, "% of a core", note),
        Figure("whole daemon, scraped", round(busy, 2), "% of a core", "reads the rules' counters every 5 s, too"),
        Figure("whole daemon, not scraped", round(idle, 2), "% of a core", "reads them as well"),
        Figure("event loop blocked by collecting", round(blocked * 1e3, 3), "ms", "per plugin and scrape, on average"),
        Figure("scrape, request to last byte", round(request_seconds * 1e3, 1), "ms", "median"),
    ], [Target(name, cost, CPU_TARGET, "% of a core")]


def _scrape_for(seconds: float) -> list[_Scrape]:
    """Scrape at each interval; the last scrape is at the end of the time."""
    begin = time.monotonic()
    scrapes = []
    for number in range(1, max(1, round(seconds / INTERVAL)) + 1):
        time.sleep(max(0.0, begin + number * INTERVAL - time.monotonic()))
        scrapes.append(_Scrape())
    return scrapes


class _Scrape:
    """One scrape: its time, and the values that the daemon returned."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        try:
            with urlopen(URL, timeout=10) as response:
                text = response.read().decode()
        except OSError as error:
            raise HostError(f"the bench's daemon serves no metrics at {URL}: {error}") from None
        self.seconds = time.monotonic() - self.at
        self.size = len(text)
        self.samples = sum(not line.startswith("#") for line in text.splitlines())
        self.reals = text.count("\nnfcore_real_packets_total{")
        self.cpu = _value(text, "nfcore_process_cpu_seconds_total")
        self.collect_seconds = _value(text, "nfcore_stats_collect_seconds_sum")
        self.collections = _value(text, "nfcore_stats_collect_seconds_count")


def _value(text: str, name: str) -> float:
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if match is None:
        raise HostError(f"the bench's daemon does not export {name}")
    return float(match[1])
