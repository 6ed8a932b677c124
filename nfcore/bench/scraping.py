# SPDX-License-Identifier: Apache-2.0
"""What figures cost: a daemon with many VIPs, reals and rules, scraped once a second as Prometheus does."""

from __future__ import annotations

import re
import time
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np

from ..errors import HostError
from .processes import Say
from .results import Figure, Target
from .sender import Sender
from .sizes import Sizes
from .testbed import NETWORK, open_site, wait_for
from .traffic import make_frames
from .workload import Workload

URL = "http://127.0.0.1:9464/metrics"
INTERVAL = 1.0
WANTED = 5.0
"""Percent of a core."""
OFFLOAD = 'min_packets = 1\nidle_timeout = "10m"\ninserts_per_second = 0\nmax_rules = 200_000'
SETTLE = 5.0
"""Seconds after which the daemon has nothing to do with the flows any more."""


def measure_collecting(nf: str, workload: Workload, sizes: Sizes, say: Say) -> tuple[list[Figure], list[Target]]:
    """Take the daemon's CPU time while nobody asks, and while somebody does. In a process of its own."""
    vips, reals = sizes.collect
    rules, seconds = sizes.collect_rules, sizes.collect_seconds
    with open_site() as site, site.daemon(site.config(nf, workload.toml(vips, reals), offload=OFFLOAD)):
        frames = make_frames(np.arange(rules), workload.services(vips, 4), 4)
        say(f"{rules:,} rules")
        with Sender(NETWORK, frames) as sender:

            def installed() -> bool:
                sender.send_for(1.0, most=rules)
                return site.figure("nfcore_flows", state="installed") == rules

            wait_for(f"{rules:,} rules", installed)
        time.sleep(min(SETTLE, seconds))
        say("nobody asks")
        begin = _Scrape()
        time.sleep(seconds)
        say("scraped once a second")
        quiet = _Scrape()
        scrapes = _scrape_for(seconds)
    last, lengths = scrapes[-1], sorted(scrape.seconds for scrape in scrapes)
    idle = 100 * (quiet.cpu - begin.cpu) / (quiet.at - begin.at)
    busy = 100 * (last.cpu - quiet.cpu) / (last.at - quiet.at)
    collected = (last.collect_seconds - quiet.collect_seconds) / (last.collections - quiet.collections)
    note = f"{vips} VIPs, {last.reals:,} reals, {rules:,} rules; {last.samples:,} samples, {last.size / 1e6:.1f} MB"
    name, cost = "figures once a second", round(max(0.0, busy - idle), 2)
    return [
        Figure(name, cost, "% of a core", note),
        Figure("whole daemon meanwhile", round(busy, 2), "% of a core", "reads the rules' counters every 5 s, too"),
        Figure("whole daemon, nobody asking", round(idle, 2), "% of a core", "does so as well"),
        Figure(
            "event loop held up by figures",
            round(collected * 1e3, 3),
            "ms",
            "at a time, on average: a plugin after the other",
        ),
        Figure("scrape, question to last byte", round(lengths[len(lengths) // 2] * 1e3, 1), "ms", "median"),
    ], [Target(name, cost, WANTED, "% of a core")]


def _scrape_for(seconds: float) -> list[_Scrape]:
    """Scrape at the interval; the last scrape is at the end of the time."""
    begin = time.monotonic()
    scrapes = []
    for number in range(1, max(1, round(seconds / INTERVAL)) + 1):
        time.sleep(max(0.0, begin + number * INTERVAL - time.monotonic()))
        scrapes.append(_Scrape())
    return scrapes


class _Scrape:
    """What the daemon told of itself, and when."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        try:
            with urlopen(URL, timeout=10) as answer:
                text = answer.read().decode()
        except (URLError, OSError) as error:
            raise HostError(f"the bench's daemon gives no figures at {URL}: {error}") from None
        self.seconds = time.monotonic() - self.at
        self.size = len(text)
        self.samples = sum(not line.startswith("#") for line in text.splitlines())
        self.reals = text.count("\nnfcore_real_packets_total{")
        self.cpu = _value(text, "nfcore_process_cpu_seconds_total")
        self.collect_seconds = _value(text, "nfcore_stats_collect_seconds_sum")
        self.collections = _value(text, "nfcore_stats_collect_seconds_count")


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    if found is None:
        raise HostError(f"the bench's daemon does not tell {name}")
    return float(found[1])
