# SPDX-License-Identifier: Apache-2.0
"""`nfcore stats` of a balancer with 512 VIPs of 100 reals: what it costs is work, counted, not time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kernel.site import Site

VIPS, REALS, DIFFERENT = 512, 100, 4000
DRAWING = {"rich", "numpy", "bcc"}
"""What a command that prints plain columns has no use for."""


def large() -> str:
    """The VIPs in TOML; a VIP's reals begin behind those of the one before."""
    reals = [f'{{ address = "198.18.{64 + number // 250}.{1 + number % 250}" }}' for number in range(DIFFERENT)]
    tables = []
    for vip in range(VIPS):
        listed = ", ".join(reals[(vip * REALS + number) % DIFFERENT] for number in range(REALS))
        address = f"198.18.{10 + vip // 250}.{1 + vip % 250}"
        tables.append(
            f'[[katran_accel.vips]]\naddress = "{address}"\nport = 80\nprotocol = "tcp"\nreals = [{listed}]\n'
        )
    return "".join(tables)


@pytest.mark.slow
def test_as_many_lines_as_samples_and_nothing_that_draws(site: Site) -> None:
    with site.running(site.config(vips=large())):
        command = [sys.executable, "-X", "importtime", "-m", "nfcore.cli", "stats", "--socket", str(site.socket)]

        def run(*options: str) -> str:
            done = subprocess.run([*command, *options], capture_output=True, text=True, check=True)
            imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
            assert "nfcore" in imported and not imported & DRAWING
            return done.stdout

        metrics = json.loads(run("--json"))["metrics"]
        samples = [sample for metric in metrics for sample in metric["samples"]]
        assert len(samples) > 2 * (VIPS + DIFFERENT)
        text = run()
        assert len(text.splitlines()) == len(samples) + 1 and "│" not in text
        # A metric of each real, not of each pair: answers grow with what is counted.
        assert len(samples) < VIPS * REALS
        one = run("--match", "real_packets 198.18.64.1", "--json")
        assert len(one) < len(text) / 10
