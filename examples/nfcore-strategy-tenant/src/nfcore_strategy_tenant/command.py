# SPDX-License-Identifier: Apache-2.0
"""`nfcore tenant-marks`: shows the marks of each owner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def show_blocks(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The TOML file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show which marks CONFIG gives to each owner, and how to match them: mark & mask == value.

    Examples:

      nfcore tenant-marks lb.toml

      nfcore tenant-marks lb.toml --json
    """
    from rich.table import Table as RichTable  # noqa: PLC0415 - every start of nfcore imports this module

    from nfcore.cli.tables import show  # noqa: PLC0415

    rows = _rows(config)
    if as_json:
        typer.echo(json.dumps({"owners": rows}))
        return
    table = RichTable("owner", "block", "marks", "value / mask", "VIPs")
    for row in rows:
        marks, match = f"{row['first']}–{row['last']}", f"{row['value']:#x} / {row['mask']:#x}"
        table.add_row(row["owner"], str(row["block"]), marks, match, ", ".join(row["vips"]) or "all others")
    show(table)


def _rows(path: Path) -> list[dict[str, Any]]:
    from nfcore.config.loader import load_config  # noqa: PLC0415
    from nfcore.errors import ConfigError, Problem  # noqa: PLC0415
    from nfcore.hooks.manager import PluginManager  # noqa: PLC0415

    from .blocks import DEFAULT_BLOCK  # noqa: PLC0415
    from .config import DEFAULT_OWNER, NAME, STRATEGY, TenantTable, blocks_of  # noqa: PLC0415

    config = load_config(path, PluginManager())
    table = config.sections.get(NAME)
    problems = []
    if not isinstance(table, TenantTable):
        problems.append(Problem("nf.plugins", f"does not have {NAME!r}"))
    if config.marking.strategy != STRATEGY:
        problems.append(Problem("marking.strategy", f"is {config.marking.strategy!r}; should be {STRATEGY!r}"))
    if problems or not isinstance(table, TenantTable):
        raise ConfigError(config.source, problems)
    blocks = blocks_of(table, config.marking.width)
    vips = {owner.block: [str(vip) for vip in owner.vips] for owner in table.owners}
    return [
        {
            "owner": blocks.owners.get(block, DEFAULT_OWNER),
            "block": block,
            "first": int(blocks.marks(block)[0]),
            "last": int(blocks.marks(block)[-1]),
            "value": block << blocks.shift,
            "mask": blocks.mask,
            "vips": vips.get(block, []),
        }
        for block in (DEFAULT_BLOCK, *sorted(vips))
    ]
