# SPDX-License-Identifier: Apache-2.0
"""Network functions that each break one promise: the skeleton's, with one fault."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.metrics import MetricFamily
from nfcore.api.network_function import PacketTrace, TargetFacts
from nfcore.scaffold import Kind, Skeleton, write_skeleton
from nfcore.testing import FunctionUnderTest

NAME = "acme_meter"
_FOLDER = Path(tempfile.mkdtemp(prefix="nfcore-skeleton-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_SKELETON = Skeleton(NAME, Kind.NF)
write_skeleton(_SKELETON, _FOLDER / "here")
sys.path.insert(0, str(_FOLDER / "here/src"))
_made = import_module(f"{_SKELETON.module}.plugin")
_SOURCE = Path(_made.__file__ or "").with_name("meter.c").read_text()
Plugin: Any = _made.AcmeMeterPlugin
Meter: Any = import_module(f"{_SKELETON.module}.meter").Meter
_spec = spec_from_file_location("skeleton_conformance", _FOLDER / "here/tests/test_conformance.py")
assert _spec is not None and _spec.loader is not None
_conformance: Any = module_from_spec(_spec)
_spec.loader.exec_module(_conformance)


def under_test(plugin: Callable[[], object]) -> FunctionUnderTest:
    """The fixture of the skeleton's own tests, with another plugin."""
    return FunctionUnderTest(
        plugin,
        NAME,
        _FOLDER / "here/example.toml",
        _conformance.flows_of,
        _conformance.others_of,
        another=[f"{NAME}.ports=[8080]"],
    )


def of_function(**methods: Callable[..., Any] | None) -> Callable[[], object]:
    """A plugin whose function has other methods: each is called with the function and the arguments."""
    faulty = type("Faulty", (Meter,), methods)

    class Wrong(Plugin):  # type: ignore[misc]
        @hookimpl
        def setup(self, context: Context) -> None:
            meter = _made.Meter
            _made.Meter = faulty
            try:
                super().setup(context)
            finally:
                _made.Meter = meter

    return Wrong


def of_program(old: str, new: str) -> Callable[[], object]:
    """A plugin whose program has one line changed."""
    assert old in _SOURCE, old

    class Wrong(Plugin):  # type: ignore[misc]
        @hookimpl
        def setup(self, context: Context) -> None:
            source = Path(_made.__file__ or "").with_name("meter.c")
            source.write_text(_SOURCE.replace(old, new))
            try:
                super().setup(context)
            finally:
                source.write_text(_SOURCE)

    return Wrong


class NoRestore(Plugin):  # type: ignore[misc]
    restore_flows = None


class Leaks(Plugin):  # type: ignore[misc]
    @hookimpl
    def setup(self, context: Context) -> None:
        super().setup(context)
        os.open("/dev/null", os.O_RDONLY)


class CountsTwice(Plugin):  # type: ignore[misc]
    @hookimpl
    def collect_stats(self) -> Iterable[MetricFamily]:
        for family in super().collect_stats():
            yield replace(family, samples=[replace(each, value=2 * each.value) for each in family.samples])


class TracesOthers(Plugin):  # type: ignore[misc]
    @hookimpl
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        return super().trace_packet(self._meter.number, frame, mark)  # type: ignore[no-any-return]


class TracesNoTarget(Plugin):  # type: ignore[misc]
    @hookimpl
    def trace_packet(self, nf: int, frame: bytes, mark: int) -> PacketTrace | None:
        traced = super().trace_packet(nf, frame, mark)
        return None if traced is None else replace(traced, target=None)


def _targets_twice(self: Any) -> FlowBatch:
    batch: FlowBatch = Meter.targets(self)
    return batch[np.tile(np.arange(len(batch)), 2)]


def _all_reports(self: Any, limit: int) -> FlowBatch:
    batch: FlowBatch = Meter.read_events(self, 1000)
    return batch


def _other_ports(self: Any, limit: int) -> FlowBatch:
    batch: FlowBatch = Meter.read_events(self, limit)
    batch.rows["target"] += 1
    return batch


def _yes(self: Any, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return np.ones(len(batch), dtype=bool)


def _no(self: Any, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
    return np.zeros(len(batch), dtype=bool)


def _publish_any(self: Any, batch: FlowBatch, marks: NDArray[np.uint32]) -> NDArray[np.bool_]:
    Meter.publish(self, batch, marks)
    return np.ones(len(batch), dtype=bool)


def _raise_for_unknown(self: Any, target: int) -> Mapping[str, str]:
    return {"port": str(self.ports[self.ports.tolist().index(target)])}


def _claim_exact(self: Any, batch: FlowBatch, since: int | None = None) -> NDArray[np.bool_]:
    claimed: NDArray[np.bool_] = np.isin(batch.rows["key"]["dport"], self.ports)
    return claimed


def _nothing(self: Any, *arguments: Any) -> None:
    return None


def _random(self: Any) -> bytes:
    return os.urandom(8)


def _text_facts(self: Any, target: int) -> TargetFacts:
    return TargetFacts(port=str(target))  # type: ignore[arg-type]


def _groups_by_place(self: Any, targets: NDArray[np.uint64]) -> NDArray[np.uint32]:
    return np.arange(len(targets), dtype=np.uint32)


_CHAIN = "return chain_next(ctx, XDP_PASS);\n}\n\nint meter_ingress"
_MARKED = "count->fast += 1;\n\t\treturn chain_next(ctx, XDP_PASS);"
_CHECK = "if (entry && entry->port && entry->port == port) {"
WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a hook is missing": (NoRestore, "hooks-have-our-signatures"),
    "a method is missing": (of_function(let_go=None), "hooks-have-our-signatures"),
    "a target that it does not know": (of_function(describe=_raise_for_unknown), "hooks-do-not-raise"),
    "targets twice": (of_function(targets=_targets_twice), "targets-are-listed-once"),
    "groups by place": (of_function(groups=_groups_by_place), "groups-are-small-numbers"),
    "nothing to say": (of_function(describe=lambda self, target: {}), "targets-are-described"),
    "the same of all": (of_function(describe=lambda self, target: {"port": "some"}), "targets-are-described"),
    "facts as text": (of_function(target_facts=_text_facts), "facts-are-values"),
    "another fingerprint each time": (of_function(fingerprint=_random), "fingerprints-tell-meanings-apart"),
    "one fingerprint for all": (of_function(fingerprint=lambda self: b"1"), "fingerprints-tell-meanings-apart"),
    "unknown targets in reports": (of_function(read_events=_other_ports), "flows-are-reported"),
    "too early": (of_program("seen % MIN_PACKETS == 0", "seen % 2 == 0"), "flows-are-reported"),
    "more than asked for": (of_function(read_events=_all_reports), "reading-never-waits"),
    "other packets dropped": (of_program(_CHAIN, _CHAIN.replace("PASS);", "DROP);", 1)), "other-packets-go-on"),
    "not restored": (of_function(restore=_nothing), "restored-flows-are-reported-again"),
    "nothing published": (of_function(publish=_yes), "published-marks-lead-to-their-target"),
    "anything published": (of_function(publish=_publish_any), "unknown-targets-are-not-published"),
    "any mark is right": (of_program(_CHECK, "if (entry && entry->port) {"), "a-mark-is-a-hint"),
    "not retired": (of_function(retire=_nothing), "retired-marks-mean-nothing"),
    "all recognised": (of_function(recognise=_yes), "marks-are-recognised"),
    "no mark is published": (of_function(publish=_no), "flows-get-rules"),
    "the end of the chain": (
        of_program(_MARKED, _MARKED.replace("chain_next(ctx, XDP_PASS)", "XDP_PASS")),
        "it-is-one-of-a-chain",
    ),
    "masked flows are not claimed": (of_function(claims=_claim_exact), "claims-cover-its-flows"),
    "traces for others": (TracesOthers, "traces-say-what-happened"),
    "traces without a target": (TracesNoTarget, "traces-say-what-happened"),
    "counted twice": (CountsTwice, "metrics-count-packets"),
    "something stays open": (Leaks, "teardown-leaves-nothing"),
}
"""What is wrong → the plugin, and the promise that it breaks."""
