# SPDX-License-Identifier: Apache-2.0
"""The table `[tenant_marks]` of the TOML, and its checks."""

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
DEFAULT_OWNER = "default"
"""Name of the block of VIPs without an owner."""


def _owner_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", value) and value != DEFAULT_OWNER:
        return value
    raise ValueError(f"should be 1 to 32 letters, digits, '_', '.' or '-', and not {DEFAULT_OWNER!r}")


class OwnerTable(ConfigTable):
    """`[[tenant_marks.owners]]`: an owner and the VIPs."""

    name: Annotated[str, BeforeValidator(_owner_name)]
    block: int = Field(ge=DEFAULT_BLOCK + 1, le=0xFFFF)
    """The upper bits of the owner's marks."""
    vips: list[Annotated[Vip, BeforeValidator(Vip.parse), PlainSerializer(str)]] = Field(min_length=1)
    """Addresses, prefixes and VIPs with port and protocol."""


class TenantTable(ConfigTable):
    """`[tenant_marks]`."""

    bits: int = Field(default=4, ge=1, le=16)
    """Number of upper bits of a mark that show the owner; the rest number the owner's targets."""
    owners: list[OwnerTable] = Field(default=[])


def check_table(raw: Mapping[str, Any], path: str) -> Iterator[Problem]:
    """Find names, blocks and VIPs that two owners have; values of a wrong type are skipped."""
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
    for key_of_owner, owner in owners:
        value = owner.get(key)
        if isinstance(value, str | int) and seen.setdefault(value, key_of_owner) != key_of_owner:
            yield Problem(f"{path}.{key_of_owner}.{key}", f"{value!r} is already {seen[value]}'s; should be another")


def _check_blocks(owners: list[tuple[str, dict[str, Any]]], bits: int, path: str) -> Iterator[Problem]:
    last = (1 << bits) - 1
    for key_of_owner, owner in owners:
        block = owner.get("block")
        if type(block) is int and last < block <= 0xFFFF:
            message = f"is {block}; with {path}.bits = {bits} it should be {DEFAULT_BLOCK + 1} to {last}"
            yield Problem(f"{path}.{key_of_owner}.block", message)


def _check_vips(owners: list[tuple[str, dict[str, Any]]], path: str) -> Iterator[Problem]:
    """Find every VIP that overlaps an earlier one of another owner, or that an owner has twice."""
    earlier: list[tuple[str, str, Vip]] = []
    for key_of_owner, owner in owners:
        vips = owner.get("vips")
        for number, text in enumerate(vips if isinstance(vips, list) else ()):
            vip = _parse_or_none(text)
            if vip is None:
                continue
            key = f"{key_of_owner}.vips[{number}]"
            for other_owner, other_key, other in earlier:
                if vip == other if key_of_owner == other_owner else vip.overlaps(other):
                    overlap = "is already" if vip == other else f"overlaps {str(other)!r}, which is already"
                    yield Problem(f"{path}.{key}", f"{str(vip)!r} {overlap} at {other_key}; a VIP has one owner")
                    break
            earlier.append((key_of_owner, key, vip))


def check_whole(config: Config) -> Iterator[Problem]:
    """Check that the blocks fit into the width of a mark."""
    table = config.sections[NAME]
    assert isinstance(table, TenantTable)  # by config_section()
    width = config.marking.width
    if config.marking.strategy == STRATEGY and table.bits >= width:
        message = f"is {table.bits}; marking.width = {width} leaves no bits for targets: should be less than {width}"
        yield Problem(f"{NAME}.bits", message)


def blocks_of(table: TenantTable, width: int) -> Blocks:
    """The blocks of a table that has passed all checks."""
    return Blocks(width, table.bits, {owner.block: owner.name for owner in table.owners})


def _parse_or_none(text: object) -> Vip | None:
    try:
        return Vip.parse(text)
    except ValueError:
        return None
