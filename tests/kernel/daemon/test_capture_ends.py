# SPDX-License-Identifier: Apache-2.0
"""Captures and the daemon's end: it stops or is killed while one runs, or has none."""

from __future__ import annotations

from tests.kernel.site import Site, nfcore, succeed

from .captures import capturing, finish, runs


def test_the_daemon_ends_first(site: Site) -> None:
    with site.running(site.config(katran="capture = true")) as daemon, capturing(site) as running:
        daemon.terminate()
        _, error = finish(running, 1)
    assert error == f"error: the daemon at {site.socket} has ended; captured 0 packets\n"


def test_a_killed_daemons_program_samples_nothing_after_the_next_start(site: Site) -> None:
    config = site.config(katran=f'capture = true\npin_dir = "{site.pins}"')
    daemon = site.start(config)
    with capturing(site):
        daemon.kill()
        daemon.wait()
    with site.running(config):
        assert not runs(site)
    succeed("cleanup", str(config))
    assert not site.pins.is_dir() or list(site.pins.iterdir()) == []


def test_a_daemon_without_captures(site: Site) -> None:
    with site.running(site.config()):
        done = nfcore("capture", "--socket", str(site.socket))
    assert done.returncode == 1 and "set katran_accel.capture = true and restart it" in done.stderr
