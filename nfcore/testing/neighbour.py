# SPDX-License-Identifier: Apache-2.0
"""A plugin with the plainest network function: it stands before or behind the one under test in a chain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..api.context import Context
from ..api.flows import FlowBatch
from ..api.hookspecs import hookimpl
from ..api.network_function import NetworkFunction
from ..api.rules import Device
from ..kernel import BPF_SOURCES, Map, MapSpec, MapType, Program, compile_program


class _Counter(NetworkFunction):
    """Counts every packet and passes it on. Has no targets and reports no flow."""

    number = 0

    def __init__(self, name: str, seen: Map, program: Program) -> None:
        self.name, self.seen, self.program = name, seen, program

    def wake_fds(self) -> Sequence[int]:
        return ()

    def read_events(self, limit: int) -> FlowBatch:
        return FlowBatch.empty()

    def targets(self) -> FlowBatch:
        return FlowBatch.empty()

    def groups(self, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
        return np.zeros(len(targets), dtype=np.uint32)

    def describe(self, target: int) -> Mapping[str, str]:
        return {}

    def fingerprint(self) -> bytes:
        return b""

    def recognise(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        return np.zeros(len(batch), dtype=bool)

    def attached(self, device: Device) -> None:
        pass


class Neighbour:
    """A network function that counts every packet and passes it on. Register it under its name before `set_up`."""

    nfcore_api = 1

    def __init__(self, name: str) -> None:
        self.name = name
        self._function: _Counter | None = None

    @property
    def seen(self) -> int:
        """How many packets it has seen."""
        assert self._function is not None, "it is not set up"
        return int(self._function.seen.read_array()[0])

    @hookimpl
    def setup(self, context: Context) -> None:
        """Load the program and register the network function."""
        seen = Map.create(MapSpec("neighbour_seen", MapType.ARRAY, np.dtype("<u4"), np.dtype("<u8"), 1))
        chain = context.chain_build(self.name)
        source = BPF_SOURCES / "chain/neighbour.c"
        maps = {seen.spec.name: seen, **chain.maps}
        program = compile_program(source, "neighbour_ingress", defines=chain.defines, maps=maps)
        self._function = _Counter(self.name, seen, program)
        context.register_nf(self._function)

    @hookimpl
    def teardown(self) -> None:
        """Close program and map."""
        if self._function is not None:
            self._function.program.close()
            self._function.seen.close()
            self._function = None

    @hookimpl
    def publish_marks(self, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Publish no mark: it has no targets."""
        return np.zeros(len(batch), dtype=bool)

    @hookimpl
    def retire_marks(self, nf: int, marks: NDArray[np.uint32]) -> None:
        """Do nothing: it has no marks."""
