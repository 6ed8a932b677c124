# SPDX-License-Identifier: Apache-2.0
"""The suite for backends: a correct backend passes; for a wrong one the broken promise is reported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nfcore.api.rules import Device
from nfcore.testing import BackendConformance, NicUnderTest
from nfcore.testing.promises import promises_of
from tests.unit.docs.guide import run_example

from .reference_nic import under_test
from .suite_runs import assert_reports_broken
from .wrong_nics import WRONG

pytest_plugins = ["pytester"]
FILE = """
import pytest
from nfcore.testing import BackendConformance
from tests.unit.testing.reference_nic import under_test
from tests.unit.testing.wrong_nics import WRONG

class TestNic(BackendConformance):
    @pytest.fixture
    def nic(self):
        return under_test(WRONG[{name!r}][0])
"""


class TestReferenceNic(BackendConformance):
    @pytest.fixture
    def nic(self) -> Iterator[NicUnderTest]:
        yield under_test()


class TestTheGuidesNic(BackendConformance):
    """The backend in docs/plugins.md, which prints rules and has no NIC."""

    @pytest.fixture
    def nic(self) -> NicUnderTest:
        why = "there is no NIC"
        plugin = run_example("install_offload")["PrintingNic"]()
        lacks = {"send": why, "restart": why, "foreign": why}
        return NicUnderTest(plugin, Device("eth1", 1, ("printing_nic",)), lacks=lacks)


@pytest.mark.parametrize("name", WRONG)
def test_the_promise_that_a_wrong_backend_breaks_is_reported(pytester: pytest.Pytester, name: str) -> None:
    _, promise, also = WRONG[name]
    assert_reports_broken(pytester, FILE.format(name=name), BackendConformance, "reference", promise, also)


def test_each_promise_is_broken_by_a_wrong_backend() -> None:
    assert {promise for _, promise, _ in WRONG.values()} == set(promises_of(BackendConformance))
