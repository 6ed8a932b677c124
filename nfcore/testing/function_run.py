# SPDX-License-Identifier: Apache-2.0
"""The network function under test, and one run of it: real program, real engine, test runs of frames."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from ..api.flows import FlowBatch, FlowMatch
from ..api.network_function import NetworkFunction, PacketTrace, missing_members
from ..api.rules import Device
from ..config.loader import load_config
from ..daemon.bootstrap import make_context, make_engine, set_up
from ..daemon.chain import Chains
from ..devices.null_backend import NULL_BACKEND, NullBackend
from ..devices.worker import InlineWorker
from ..errors import ConfigError
from ..kernel import TestRun
from .neighbour import Neighbour
from .nic import require_known
from .promises import PluginDriver
from .samples import sample_frame

FUNCTION_ABILITIES = {
    "reports": "have the function report flows of the traffic that it sees",
    "others": "send packets that are none of its traffic",
    "another": "set it up so that its targets mean something else",
    "checks": "have the function check a mark against the packet",
    "several": "send flows of two groups of targets",
}
"""Ability → what the test can do with it, for messages: the keys of :class:`FunctionUnderTest`'s `lacks`."""
LOOPBACK = 1
"""The ifindex that packets of a test run have."""
MIN_PACKETS = 4


@dataclass
class FunctionUnderTest:
    """What the fixture `function` returns. Everything comes from the plugin and its TOML: nothing is said twice."""

    plugin: Callable[[], object]
    """Makes the plugin object, as nfcore does: the class, or a function without arguments."""
    name: str
    """The plugin's name, which is also that of its network function."""
    config: Path
    """A TOML that names it, with one interface whose chain is this function alone. The interface need not exist."""
    flows: Callable[[NetworkFunction], Sequence[FlowMatch]]
    """Gives flows that the function, as it is set up, handles: of two targets if it has several, best of each family
    and protocol. They are made from what the function knows, so that another TOML needs no other test."""
    others: Callable[[NetworkFunction], Sequence[FlowMatch]] = lambda function: ()
    """Gives flows that are none of its traffic."""
    overrides: Sequence[str] = ()
    """``KEY=VALUE`` for the TOML, as `nfcore run --set` takes them."""
    another: Sequence[str] = ()
    """Further ones with which targets mean something else than without."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Missing ability, a key of :data:`FUNCTION_ABILITIES` → the reason."""

    def __post_init__(self) -> None:
        require_known("FunctionUnderTest", self.lacks, FUNCTION_ABILITIES)


class FunctionRun:
    """The plugin, set up from its TOML, with an engine whose NIC takes every rule, until `stack` is closed.

    chain: the functions of the interface; those beside the one under test count packets and pass them on.
    """

    def __init__(
        self, driver: FunctionDriver, stack: ExitStack, overrides: Sequence[str] = (), chain: Sequence[str] = ()
    ) -> None:
        __tracebackhide__ = True
        under = driver.under
        chain = chain or (under.name,)
        driver.register(under.plugin())
        self.driver, plugins = driver, driver.plugins
        overrides = [*under.overrides, f"offload.min_packets={MIN_PACKETS}", *overrides]
        config = load_config(under.config, plugins, overrides)
        interface = config.interfaces[0].model_copy(update={"chain": list(chain), "offload": [NULL_BACKEND]})
        config = replace(config, interfaces=[interface])
        plugins.register(NullBackend(), NULL_BACKEND)
        self.neighbours = {name: Neighbour(name) for name in chain if name != under.name}
        for name, neighbour in self.neighbours.items():
            plugins.register(neighbour, name)
        self.device = Device(interface.name, LOOPBACK, (NULL_BACKEND,))
        self.context = make_context(config, plugins, [self.device], tracing=True)
        chains = stack.enter_context(Chains(self.context))
        try:
            stack.enter_context(set_up(self.context, plugins))
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - reported as a fault of the plugin
            lacking = any(missing_members(each) for each in self.context.nfs)
            promise = "hooks-have-our-signatures" if lacking else "hooks-do-not-raise"
            driver.broken(f"raised {error}", promise=promise, hook="setup", why=error)
        mine = [each for each in self.context.nfs if each.name == under.name]
        wrong = f"setup has registered {[each.name for each in self.context.nfs]}; should be one named {under.name!r}"
        driver.expect(len(mine) == 1, wrong, promise="hooks-have-our-signatures", hook="setup")
        self.function = mine[0]
        self._pin_to_cpu(stack)
        self.engine = make_engine(self.context, plugins, {LOOPBACK: InlineWorker()})
        self.ask("attached", self.device)
        self._engine("start")
        chains.link()
        self.program = chains.program(self.device)
        self.flows = list(under.flows(self.function))
        self.others = list(under.others(self.function))
        if not self.flows:
            raise pytest.UsageError("FunctionUnderTest.flows gives no flow")

    def _pin_to_cpu(self, stack: ExitStack) -> None:
        """Run frames on one CPU, if possible on one that has a pool of marks."""
        allowed = os.sched_getaffinity(0)
        with_pool = set() if self.function.pools is None else set(self.function.pools.cpus)
        os.sched_setaffinity(0, {min(with_pool & allowed or allowed)})
        stack.callback(os.sched_setaffinity, 0, allowed)

    def ask(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the function; an exception breaks the promise that none raises."""
        __tracebackhide__ = True
        try:
            return getattr(self.function, method)(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - reported as a fault of the plugin
            wrong = f"raised {type(error).__name__}: {error}"
            self.driver.broken(wrong, promise="hooks-do-not-raise", hook=method, why=error)

    def poll(self) -> None:
        """Let the engine take reports and give rules."""
        __tracebackhide__ = True
        self._engine("poll")

    def _engine(self, step: str) -> None:
        __tracebackhide__ = True
        try:
            getattr(self.engine, step)()
        except Exception as error:  # noqa: BLE001 - reported as a fault of the plugin
            wrong = f"a method has raised {type(error).__name__} in the engine's {step}(): {error}"
            self.driver.broken(wrong, promise="hooks-do-not-raise", why=error)

    def send(self, flow: FlowMatch, count: int = 1, mark: int = 0) -> TestRun:
        """Send a frame of a flow that many times; the last result."""
        metadata = struct.pack("=I", mark) if mark else b""
        return [self.program.test_run(sample_frame(flow), metadata=metadata) for _ in range(count)][-1]

    def trace(self, flow: FlowMatch, mark: int = 0) -> PacketTrace:
        """Trace one frame of a flow."""
        __tracebackhide__ = True
        arguments = {"nf": self.function.number, "frame": sample_frame(flow), "mark": mark}
        traced = self.driver.call("trace_packet", "traces-say-what-happened", **arguments)
        if traced is None:
            self.driver.broken("returned None for its own function", promise="traces-say-what-happened")
        assert isinstance(traced, PacketTrace)
        return traced

    def reports(self, limit: int = 1000) -> FlowBatch:
        """Read reports of flows."""
        __tracebackhide__ = True
        batch = self.ask("read_events", limit)
        wrong = f"returned {batch!r:.60}; should be a FlowBatch"
        self.driver.expect(isinstance(batch, FlowBatch), wrong, promise="reading-never-waits", hook="read_events")
        assert isinstance(batch, FlowBatch)
        return batch

    def targets(self) -> FlowBatch:
        """All targets."""
        __tracebackhide__ = True
        batch = self.ask("targets")
        wrong = f"returned {batch!r:.60}; should be a FlowBatch"
        self.driver.expect(isinstance(batch, FlowBatch), wrong, promise="targets-are-listed-once", hook="targets")
        assert isinstance(batch, FlowBatch)
        return batch

    def target_of(self, flow: FlowMatch) -> int:
        """The target of a flow: of its report, else the one that the trace names."""
        __tracebackhide__ = True
        if "reports" in self.driver.under.lacks:
            traced = self.trace(flow).target
            wrong = f"the trace of {flow} names no target"
            self.driver.expect(traced is not None, wrong, promise="traces-say-what-happened", hook="trace_packet")
            return int(traced or 0)
        self.reports()
        self.send(flow, MIN_PACKETS)
        found = [int(row["target"]) for row in self.reports().rows if row["key"] == flow.to_key()]
        wrong = f"{MIN_PACKETS} packets of {flow} were not reported"
        self.driver.expect(found, wrong, promise="flows-are-reported", hook="read_events")
        return found[0]

    def publish(self, *targets: int, flow: FlowMatch | None = None) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
        """Publish a free mark for each target: the marks, and whether their entries are there."""
        __tracebackhide__ = True
        batch = self.batch(*targets)
        if flow is not None:
            batch.rows["key"], batch.rows["family"] = flow.to_key(), flow.family
        marks = self.context.marks.take(len(targets))
        there = self.driver.call("publish_marks", "published-marks-lead-to-their-target", batch=batch, marks=marks)
        return marks, there

    def batch(self, *targets: int) -> FlowBatch:
        """A row per target, with a key of zeros."""
        batch = FlowBatch.empty(len(targets))
        batch.rows["nf"], batch.rows["target"] = self.function.number, np.array(targets, dtype=np.uint64)
        batch.rows["ifindex"] = self.device.ifindex
        return batch

    def batch_of(self, flows: Sequence[FlowMatch]) -> FlowBatch:
        """A row per flow, without a target."""
        batch = self.batch(*[0] * len(flows))
        for row, flow in zip(batch.rows, flows, strict=True):
            row["key"], row["family"] = flow.to_key(), flow.family
        return batch


class FunctionDriver(PluginDriver):
    """One network function in one test."""

    def __init__(self, node: pytest.Item, suite: type, under: FunctionUnderTest) -> None:
        super().__init__(node, under.name, suite)
        self.under = under
        self._runs = ExitStack()

    def run(self, overrides: Sequence[str] = (), chain: Sequence[str] = ()) -> FunctionRun:
        """Set the plugin up; the run before this one is torn down. ConfigError: the plugin refuses its TOML."""
        __tracebackhide__ = True
        self.close()
        return FunctionRun(self, self._runs, overrides, chain)

    def close(self) -> None:
        """Tear the last run down. Idempotent."""
        self._runs.close()

    def needs(self, ability: str) -> None:
        """End the test if the function under test lacks an ability, or the fixture does not give what it takes."""
        __tracebackhide__ = True
        if ability in self.under.lacks:
            self.not_applicable(f"the suite cannot {FUNCTION_ABILITIES[ability]}: {self.under.lacks[ability]}")

    def skip_without(self, ability: str, given: object) -> None:
        """End the test if the fixture gives nothing for an ability."""
        __tracebackhide__ = True
        self.needs(ability)
        if not given:
            self._end_without(ability)

    def _end_without(self, ability: str) -> NoReturn:
        __tracebackhide__ = True
        what = f"the suite cannot {FUNCTION_ABILITIES[ability]}"
        pytest.skip(f"{self.name}: {what}; give it in FunctionUnderTest, or say why not in its `lacks`[{ability!r}]")
