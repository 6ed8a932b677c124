# SPDX-License-Identifier: Apache-2.0
"""The site of the other kernel tests with a chain on it: flow_actions in front of the balancer.

::

    net0 ══ wire0 [NIC] port0 ══ eth1 [flow_actions → balancer]        out0 ══ out1: where redirected frames come out
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfcore.bench.testbed import HOST, run, testbed_here
from tests.kernel.site import PATIENCE, Site, packet_socket

from .chain import Chain, chain_config, exact, frame, make_out, masked

__all__ = ["ChainedSite", "exact", "frame", "make_out", "masked", "open_chained_site", "run"]


class ChainedSite(Chain, Site):
    """A site with a chain."""

    @property
    def balancer_pins(self) -> Path:
        """Folder for the balancer's pins; `pins` is for those of flow_actions."""
        return self.pins.with_name("balancer")

    def chain_config(
        self, *, strategy: str = "dest-id", nic: bool = True, balancer: str = "", actions: str = ""
    ) -> Path:
        """Write the TOML. nic: whether the emulated NIC may be used. balancer, actions: more for these tables."""
        backend = "softnic" if nic else ""
        settings = self._backend_toml("softnic")
        return chain_config(self.folder, HOST, backend, settings, strategy=strategy, balancer=balancer, actions=actions)


@contextmanager
def open_chained_site(folder: Path) -> Iterator[ChainedSite]:
    """Make the network; leave nothing behind."""
    with testbed_here(ChainedSite(folder)) as site, packet_socket() as site.network:
        site.network.settimeout(PATIENCE)
        try:
            with site.redirecting():
                yield site
        finally:
            site.daemons.kill_all()
            for pins in (site.pins, site.balancer_pins):
                if pins.is_mount():
                    run("umount", str(pins))
