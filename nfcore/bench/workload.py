# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="empty-body"
"""What a network function's plugin gives to `nfcore bench`: programs with their packets, its own results, targets.

The hook `benchmark` returns a :class:`Workload`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
    """One setup: programs, their tables and their packets."""

    family: Family
    cpus: tuple[int, ...]
    """CPUs on which the packets arrive."""
    flows: tuple[int, ...]
    """Numbers of flows to measure."""
    fast_flows: tuple[int, ...]
    """The same for programs that need no table of flows."""
    behind: Workload | None = None
    """What :attr:`Workload.chained_with` names."""


class Workload(Protocol):
    """A network function as it is measured. Its programs are opened in child processes, never in the main one."""

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the results has to know."""

    @property
    def reports_flows(self) -> bool:
        """Whether its program reports new flows by itself: only then engine, first marks and live are measured."""

    @property
    def chained_with(self) -> str:
        """Name of the function whose packets are also measured in a chain behind this one; empty: of none."""

    def prepare(self, families: Sequence[Family]) -> None:
        """Compute what all child processes need, before they are forked."""

    def setups(self, flows: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Group numbers of flows by the setup that they need: too large a table changes the times of few flows."""

    def subjects(self, request: BenchRequest) -> AbstractContextManager[Sequence[Subject]]:
        """Open the programs with their packets for a block. The caller is pinned to the first of the CPUs."""

    @property
    def feature_subjects(self) -> Callable[[BenchRequest], AbstractContextManager[Sequence[Subject]]] | None:
        """As :meth:`subjects`, of programs with optional features, beside one that has none; None: there are none."""

    def toml(self, vips: int, reals: int) -> str:
        """Return the plugin's TOML tables for a daemon with `vips` services of `reals` reals each."""

    def services(self, vips: int, family: Family) -> NDArray[np.void]:
        """Return the services of :meth:`toml` in this family as :data:`.traffic.SERVICE` rows."""

    def program(self, nf: NetworkFunction) -> Program:
        """Return the program that packets enter."""

    def own_results(self, sizes: Sizes) -> Iterator[tuple[Figure, Target | None]]:
        """Measure what only this plugin has, each with a target or without."""

    def judge(self, rows: Sequence[Row]) -> Sequence[Target]:
        """Compare the datapath's rows with their targets. A target that is not met has `about`."""

    def gains(self, rows: Sequence[Row], cores: Sequence[CoreRow]) -> Sequence[Gain]:
        """Compute how many more packets the fast path takes, beside published numbers."""
