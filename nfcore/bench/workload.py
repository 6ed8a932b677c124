# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""What a network function's plugin gives to `nfcore bench`: programs, worlds, figures of its own, and what to expect.

The hook `benchmark` answers with a :class:`Workload`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..api.network_function import NetworkFunction
from ..kernel import Program
from .datapath import Row, Subject
from .results import CoreRow, Figure, Gain, Target
from .sizes import Sizes
from .traffic import Family


@dataclass(frozen=True)
class BenchRequest:
    """One world of programs, tables and packets."""

    family: Family
    cpus: tuple[int, ...]
    """CPUs that the packets will come on."""
    flows: tuple[int, ...]
    fast_flows: tuple[int, ...]
    """For programs that need no table of flows."""


class Workload(Protocol):
    """A network function as it is measured: opened in processes of their own, never in the one that reports."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the result has to know."""

    def prepare(self, families: Sequence[Family]) -> None:
        """Compute what all processes need, before they are made."""

    def worlds(self, flows: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Give numbers of flows by the world that they need: in too large a one few flows are not the same."""

    def subjects(self, request: BenchRequest) -> AbstractContextManager[Sequence[Subject]]:
        """Open programs with their packets; the caller stays on the first of the CPUs meanwhile."""

    def toml(self, vips: int, reals: int) -> str:
        """Write the plugin's own tables for a daemon: so many services with so many backends each."""

    def services(self, vips: int, family: Family) -> NDArray[np.void]:
        """Give those of :meth:`toml` in this family, :data:`.traffic.SERVICE` rows."""

    def program(self, nf: NetworkFunction) -> Program:
        """Give the program that packets enter."""

    def figures(self, sizes: Sizes) -> Iterator[tuple[Figure, Target | None]]:
        """Measure what is the plugin's alone."""

    def judge(self, rows: Sequence[Row]) -> Sequence[Target]:
        """Compare the datapath's figures with what they should be; of one that is not as it should be say `about`."""

    def gains(self, rows: Sequence[Row], cores: Sequence[CoreRow]) -> Sequence[Gain]:
        """Tell how much more packets the fast path takes, beside published figures."""
