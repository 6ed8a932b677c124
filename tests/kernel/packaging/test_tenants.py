# SPDX-License-Identifier: Apache-2.0
"""The tenants' strategy in a daemon: rules on the NIC by owner, and VIPs that come and go while packets flow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfcore.api.flows import FlowMatch
from nfcore.bench.testbed import NIC_MAC
from nfcore.testing import sample_frame
from tests.kernel.site import Site, eventually, vip_toml
from tests.paths import ROOT

from .environments import build_wheel, make_environment, run

pytestmark = pytest.mark.slow
BLUE, GREEN, NOBODYS = "198.18.10.1", "198.18.11.1", "198.18.12.1"
REALS = ("198.18.20.11", "198.18.20.12", "198.18.20.13")
OWNERS = f"""
[tenant_marks]
bits = 4
owners = [
    {{ name = "blue", block = 1, vips = ["198.18.10.0/24"] }},
    {{ name = "green", block = 2, vips = ["{GREEN}:80/tcp"] }},
]
"""


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tenants")
    return make_environment(folder / "venv", wheel, build_wheel(ROOT / "examples/nfcore-strategy-tenant", folder))


@pytest.fixture
def tenants(site: Site, environment: Path) -> Iterator[Site]:
    site.daemons.python = environment / "python"
    yield site


def write(site: Site, *vips: str) -> Path:
    """Name these VIPs in the TOML."""
    path = site.config(strategy="tenant", vips="\n".join(vips))
    path.write_text(path.read_text().replace('"marking"', '"tenant_marks"') + OWNERS)
    return path


def vip(address: str, reals: int) -> str:
    return vip_toml(*REALS[:reals], address=address)


def in_use(site: Site) -> tuple[float, ...]:
    """Marks of blue, of green and of nobody."""
    return tuple(site.metric("nfcore_tenant_marks_in_use", owner=owner) for owner in ("blue", "green", "default"))


def owners_of_rules(site: Site) -> list[int]:
    """The upper bits of the marks that the NIC sets, one for each rule."""
    with site.backend() as nic:
        return sorted((nic.dump()["rule"]["mark"] >> 12).tolist())


def send(site: Site, address: str) -> None:
    frame = sample_frame(FlowMatch.parse(f"198.18.1.2:40000 > {address}:80/tcp"))
    site.exchange(bytes.fromhex(NIC_MAC.replace(":", "")) + frame[6:])


def rules_become(site: Site, owners: list[int], *addresses: str) -> bool:
    """Send packets to these VIPs, as many as it takes: each CPU counts for itself."""

    def sent_and_seen() -> bool:
        for address in addresses:
            send(site, address)
        return owners_of_rules(site) == owners

    return bool(eventually(sent_and_seen))


def test_marks_on_the_nic_tell_the_owner(tenants: Site) -> None:
    addresses = (BLUE, GREEN, NOBODYS)
    with tenants.running(write(tenants, *(vip(address, 2) for address in addresses))):
        assert in_use(tenants) == (2, 2, 2)
        assert rules_become(tenants, [0, 1, 2], *addresses)
        before = tenants.metric("nfcore_packets_total", path="fast")
        for address in addresses * 2:
            send(tenants, address)
        assert eventually(lambda: tenants.metric("nfcore_packets_total", path="fast") == before + 6)


def test_vips_come_and_go(tenants: Site, environment: Path) -> None:
    config = write(tenants, vip(BLUE, 2), vip(NOBODYS, 1))

    def reload(*vips: str) -> None:
        write(tenants, *vips)
        done = run(environment / "nfcore", "reload", str(config), cwd=tenants.folder)
        assert done.returncode == 0, done.stderr

    with tenants.running(config):
        assert in_use(tenants) == (2, 0, 1)
        assert rules_become(tenants, [1], BLUE)
        reload(vip(BLUE, 2), vip(GREEN, 3), vip("198.18.10.2", 1))
        assert eventually(lambda: in_use(tenants) == (3, 3, 0))
        assert rules_become(tenants, [1, 2], GREEN)
        reload(vip(GREEN, 3))
        assert eventually(lambda: (in_use(tenants), owners_of_rules(tenants)) == ((0, 3, 0), [2]))
        reload(vip(GREEN, 3), vip(BLUE, 3))
        assert rules_become(tenants, [1, 2], BLUE)
        assert in_use(tenants) == (3, 3, 0)


def test_another_table_takes_a_restart_that_trusts_no_rule(tenants: Site, environment: Path) -> None:
    config = write(tenants, vip(BLUE, 2))
    daemon = tenants.start(config)
    assert rules_become(tenants, [1], BLUE)
    config.write_text(config.read_text().replace("block = 1", "block = 5"))
    done = run(environment / "nfcore", "reload", str(config), cwd=tenants.folder)
    assert done.returncode != 0
    assert "tenant_marks: has changed, which takes a restart" in done.stderr
    daemon.kill()
    daemon.wait()
    with tenants.running(config):
        assert tenants.metric("nfcore_adopted_total") == 0
        assert tenants.rules() == 0
        assert rules_become(tenants, [5], BLUE)
