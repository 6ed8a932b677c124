# SPDX-License-Identifier: Apache-2.0
"""The plugin: the hooks of the strategy `tenant`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import typer
from numpy.typing import NDArray

from nfcore.api.config import Section
from nfcore.api.context import Context
from nfcore.api.flows import FlowBatch
from nfcore.api.hookspecs import hookimpl
from nfcore.api.marks import MarkMeaning, StrategyInfo
from nfcore.api.metrics import MetricFamily, MetricKind
from nfcore.api.target_marks import Target, TargetMarks

from .blocks import DEFAULT_BLOCK
from .command import show_blocks
from .config import DEFAULT_OWNER, NAME, STRATEGY, TenantTable, blocks_of, check_table, check_whole
from .vips import Vip

TENANT = StrategyInfo(STRATEGY, MarkMeaning.TARGET, "one mark per target, from the block of its VIP's owner")
log = logging.getLogger(__name__)


class TenantMarks(TargetMarks):
    """One mark per target, from the block of its VIP's owner: the lowest free one."""

    def __init__(self, context: Context, table: TenantTable) -> None:
        super().__init__(context.marks, self._from_blocks)
        self.blocks = blocks_of(table, context.config.marking.width)
        self.refused: Counter[int] = Counter()
        """Block → how often no mark was free for a target."""
        self._nfs = context.nfs
        self._owned_vips = [(vip, owner.block) for owner in table.owners for vip in owner.vips]
        # Cached: there are many targets, but few VIPs.
        self._block_of_vip = lru_cache(maxsize=4096)(self._find_block)

    def owner(self, block: int) -> str:
        """The owner of a block."""
        return self.blocks.owners.get(block, DEFAULT_OWNER)

    def in_use(self) -> Counter[int]:
        """Number of marks in use, by block."""
        return Counter(self.blocks.block_of(mark) for mark in self.known.values())

    def _from_blocks(self, targets: Sequence[Target]) -> NDArray[np.uint32]:
        blocks = np.array([self._block(*target) for target in targets])
        chosen = np.zeros(len(targets), dtype=np.uint32)
        for block in np.unique(blocks).tolist():
            rows = np.flatnonzero(blocks == block)
            marks = self._claim(block, len(rows))
            chosen[rows[: len(marks)]] = marks
            if len(marks) < len(rows):
                self._log_full(block)
                self.refused[block] += len(rows) - len(marks)
        return chosen

    def _claim(self, block: int, wanted: int) -> NDArray[np.uint32]:
        marks = self.blocks.marks(block)
        marks = marks[self._marks.free(marks)][:wanted]
        claimed: NDArray[np.uint32] = marks[self._marks.claim(marks)]
        return claimed

    def _log_full(self, block: int) -> None:
        if not self.refused[block]:
            size = len(self.blocks.marks(block))
            log.warning("the block of %s is full: its %d marks are in use or in quarantine", self.owner(block), size)

    def _block(self, nf: int, target: int) -> int:
        if not 0 < nf <= len(self._nfs):
            return DEFAULT_BLOCK
        return self._block_of_vip(self._nfs[nf - 1].describe(target).get("vip", ""))

    def _find_block(self, text: str) -> int:
        try:
            vip = Vip.parse(text)
        except ValueError:
            return DEFAULT_BLOCK  # a network function without VIPs, or with another notation
        return next((block for owned, block in self._owned_vips if owned.covers(vip)), DEFAULT_BLOCK)


class TenantMarksPlugin:
    """Offers the strategy `tenant`; is in charge if the TOML chooses it."""

    nfcore_api = 1
    """Version of nfcore's hooks for which the plugin is written."""

    def __init__(self) -> None:
        self._chosen: TenantMarks | None = None

    @hookimpl
    def config_section(self) -> Section:
        """Define `[tenant_marks]`."""
        return Section(TenantTable, check_table, check_whole=check_whole)

    @hookimpl
    def register_commands(self, app: typer.Typer) -> None:
        """Add `nfcore tenant-marks`."""
        app.command("tenant-marks")(show_blocks)

    @hookimpl
    def marking_strategies(self) -> Sequence[StrategyInfo]:
        """Offer the strategy."""
        return (TENANT,)

    @hookimpl
    def setup(self, context: Context) -> None:
        """Make the strategy if the configuration chooses it."""
        if context.strategy == TENANT:
            table = context.config.sections[NAME]
            assert isinstance(table, TenantTable)  # by config_section()
            self._chosen = TenantMarks(context, table)

    @hookimpl
    def teardown(self) -> None:
        """Forget all marks."""
        self._chosen = None

    @hookimpl
    def allocate_mark(self, batch: FlowBatch) -> NDArray[np.uint32] | None:
        """Return the mark of each flow's target; None when another strategy is in charge."""
        return self._chosen.allocate(batch) if self._chosen else None

    @hookimpl
    def release_mark(self, marks: NDArray[np.uint32]) -> None:
        """Return marks of targets that are gone to their blocks."""
        if self._chosen:
            self._chosen.release(marks)

    @hookimpl
    def collect_stats(self) -> Iterator[MetricFamily]:
        """Return size of the block, marks in use and refusals, per owner."""
        if self._chosen:
            yield from _metrics(self._chosen)


def _metrics(marks: TenantMarks) -> Iterator[MetricFamily]:
    prefix = f"nfcore_{NAME}"
    size = MetricFamily(f"{prefix}_size", MetricKind.GAUGE, "Marks in the owner's block", "marks")
    used = MetricFamily(f"{prefix}_in_use", MetricKind.GAUGE, "Marks that a target of the owner has", "marks")
    text = "Times that a target in a batch of flows got no mark because its owner's block was full"
    refused = MetricFamily(f"{prefix}_refused_total", MetricKind.COUNTER, text)
    in_use = marks.in_use()
    for block in (DEFAULT_BLOCK, *sorted(marks.blocks.owners)):
        owner = marks.owner(block)
        size.add(len(marks.blocks.marks(block)), owner=owner)
        used.add(in_use[block], owner=owner)
        refused.add(marks.refused[block], owner=owner)
    yield from (size, used, refused)
