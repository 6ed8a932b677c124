# SPDX-License-Identifier: Apache-2.0
"""The TOML's `[tenant_marks]`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

from nfcore.api.config import Config, ConfigTable
from nfcore.errors import Problem

from .blocks import DEFAULT_BLOCK, Blocks
from .vips import Vip

NAME = "tenant_marks"
STRATEGY = "tenant"
NOBODY = "default"
"""The name of the block whose VIPs nobody owns."""


def _owner_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", value) and value != NOBODY:
        return value
    raise ValueError(f"should be 1 to 32 letters, digits, '_', '.' or '-', and not {NOBODY!r}")


class OwnerTable(ConfigTable):
    """`[[tenant_marks.owners]]`: who owns which VIPs."""

    name: Annotated[str, BeforeValidator(_owner_name)]
    block: int = Field(ge=DEFAULT_BLOCK + 1, le=0xFFFF)
    """The upper bits of the owner's marks."""
    vips: list[Annotated[Vip, BeforeValidator(Vip.parse), PlainSerializer(str)]] = Field(min_length=1)
    """Addresses, prefixes and VIPs with port and protocol."""


class TenantTable(ConfigTable):
    """`[tenant_marks]`."""

    bits: int = Field(default=4, ge=1, le=16)
    """How many upper bits of a mark are the owner's; the rest numbers the targets of one owner."""
    owners: list[OwnerTable] = Field(default=[])


def check_table(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find what two owners both want, as far as the values can be read at all."""
    owners = raw.get("owners")
    numbered = [
        (f"owners[{number}]", owner)
        for number, owner in enumerate(owners if isinstance(owners, list) else ())
        if isinstance(owner, dict)
    ]
    yield from _check_unique(numbered, "name", path)
    yield from _check_unique(numbered, "block", path)
    bits = raw.get("bits", TenantTable.model_fields["bits"].default)
    if type(bits) is int and 1 <= bits <= 16:
        yield from _check_blocks(numbered, bits, path)
    yield from _check_vips(numbered, path)


def _check_unique(owners: list[tuple[str, dict[str, Any]]], key: str, path: str) -> Iterator[Problem]:
    seen: dict[object, str] = {}
    for where, owner in owners:
        value = owner.get(key)
        if isinstance(value, str | int) and seen.setdefault(value, where) != where:
            yield Problem(f"{path}.{where}.{key}", f"{value!r} is already {seen[value]}'s; should be another")


def _check_blocks(owners: list[tuple[str, dict[str, Any]]], bits: int, path: str) -> Iterator[Problem]:
    last = (1 << bits) - 1
    for where, owner in owners:
        block = owner.get("block")
        if type(block) is int and last < block <= 0xFFFF:
            message = f"is {block}; with {path}.bits = {bits} it should be {DEFAULT_BLOCK + 1} to {last}"
            yield Problem(f"{path}.{where}.block", message)


def _check_vips(owners: list[tuple[str, dict[str, Any]]], path: str) -> Iterator[Problem]:
    """Every VIP that has something in common with an earlier one of another owner, or stands twice."""
    before: list[tuple[str, str, Vip]] = []
    for where, owner in owners:
        vips = owner.get("vips")
        for number, text in enumerate(vips if isinstance(vips, list) else ()):
            vip = _try(text)
            if vip is None:
                continue
            here = f"{where}.vips[{number}]"
            for other_where, there, other in before:
                if vip == other if where == other_where else vip.overlaps(other):
                    words = "stands" if vip == other else f"has a part of {str(other)!r}, which stands"
                    message = f"{str(vip)!r} {words} at {there} already; a VIP has one owner"
                    yield Problem(f"{path}.{here}", message)
                    break
            before.append((where, here, vip))


def check_whole(config: Config) -> Iterator[Problem]:
    """Compare the blocks with the width of a mark."""
    table = config.sections[NAME]
    assert isinstance(table, TenantTable)  # config_section() said so
    width = config.marking.width
    if config.marking.strategy == STRATEGY and table.bits >= width:
        message = f"is {table.bits}; marking.width = {width} leaves no bits for targets: should be less than {width}"
        yield Problem(f"{NAME}.bits", message)


def blocks_of(table: TenantTable, width: int) -> Blocks:
    """Give the blocks of a table that passed all checks."""
    return Blocks(width, table.bits, {owner.block: owner.name for owner in table.owners})


def _try(text: object) -> Vip | None:
    try:
        return Vip.parse(text)
    except ValueError:
        return None
