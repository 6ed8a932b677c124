# SPDX-License-Identifier: Apache-2.0
"""A site for each test that asks for one, a CPU of its own, and nfcore's wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.isolation import on_one_cpu
from tests.kernel.packaging.environments import build_wheel
from tests.paths import ROOT

from .site import Site, open_site


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nfcore's, built once."""
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as opened:
        yield opened


@pytest.fixture(params=["dest-id", "flow-id"])
def strategy(request: pytest.FixtureRequest) -> str:
    """Each of the strategies that come with nfcore."""
    return str(request.param)


@pytest.fixture
def _one_cpu() -> Iterator[None]:
    """Frames are handled on the CPU that sends them: one connection table sees them all."""
    with on_one_cpu():
        yield
