# SPDX-License-Identifier: Apache-2.0
"""The commands `nfcore server-ids …` and `nfcore source-routes …`, over the daemon's socket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nfcore.cli.options import ConfigOption, JsonOption, OptionalConfig, SocketOption, find_socket, last_is_config
from nfcore.cli.tables import TextTable, show
from nfcore.control.client import request
from nfcore.errors import ConfigError, Problem
from nfcore.text import json_text

PAGE = 10_000
"""Rows of a request."""

server_ids = typer.Typer(
    help="Server ids: by which QUIC and other packets name their real.",
    epilog="Example: nfcore server-ids invalidate 1001",
    no_args_is_help=True,
)
source_routes = typer.Typer(
    help="Source routes: clients whose new flows go to a certain real.",
    epilog="Example: nfcore source-routes load routes.csv --replace",
    no_args_is_help=True,
)

_Ids = Annotated[list[str], typer.Argument(metavar="ID… [CONFIG]", help="The server ids.")]
_Prefixes = Annotated[list[str], typer.Argument(metavar="PREFIX… [CONFIG]", help="The prefixes of clients.")]
_File = Annotated[Path, typer.Argument(metavar="FILE", help="A file, which the daemon reads.", readable=False)]
_Real = Annotated[str | None, typer.Option(help="Only those of this real.")]
_Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="How many to list.")]
_Replace = Annotated[bool, typer.Option("--replace", help="Remove all others in the same change.")]


@server_ids.command("list")
def list_ids(
    real: _Real = None,
    limit: _Limit = 1000,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List server ids with their reals, and whether they are valid.

    Example: nfcore server-ids list --real 198.18.20.11
    """
    _list("server_ids", ("id", "real", "valid", "owner"), real, limit, find_socket(config, socket), as_json)


@server_ids.command("add")
def add_ids(
    pairs: Annotated[list[str], typer.Argument(metavar="ID=REAL… [CONFIG]", help="Server ids with their reals.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add server ids until the next reload: all of them or none. They may name reals that the TOML does not have.

    Example: nfcore server-ids add 1001=198.18.20.11 1002=198.18.20.12
    """
    words, config = last_is_config(pairs, config, socket)
    rows = [{"id": _id("server-ids add", key), "real": real} for key, real in _pairs("server-ids add", words)]
    _change("server_ids", config, socket, as_json, add=rows)


@server_ids.command("load")
def load_ids(
    file: _File,
    replace: _Replace = False,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the server ids of a file until the next reload, a line `id,real` each: all of them or none.

    Example: nfcore server-ids load ids.csv
    """
    _change("server_ids", config, socket, as_json, add_file=str(file.absolute()), replace=replace)


@server_ids.command("remove")
def remove_ids(
    ids: _Ids, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Remove server ids until the next reload: packets that name them go by the ring.

    Example: nfcore server-ids remove 1001 1002
    """
    _change_ids("remove", ids, config, socket, as_json)


@server_ids.command("invalidate")
def invalidate_ids(
    ids: _Ids, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Let packets that name these ids go by the ring, until the ids are restored; also after a reload.

    Example: nfcore server-ids invalidate 1001
    """
    _change_ids("invalidate", ids, config, socket, as_json)


@server_ids.command("restore")
def restore_ids(
    ids: _Ids, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Let invalid ids lead to their reals again.

    Example: nfcore server-ids restore 1001
    """
    _change_ids("restore", ids, config, socket, as_json)


@source_routes.command("list")
def list_routes(
    real: _Real = None,
    limit: _Limit = 1000,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """List source routes with their reals.

    Example: nfcore source-routes list --real 198.18.20.11
    """
    _list("source_routes", ("prefix", "real", "owner"), real, limit, find_socket(config, socket), as_json)


@source_routes.command("add")
def add_routes(
    pairs: Annotated[list[str], typer.Argument(metavar="PREFIX=REAL… [CONFIG]", help="Prefixes with their reals.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add source routes until the next reload: all of them or none. They may name reals that the TOML does not have.

    Example: nfcore source-routes add 198.18.7.0/24=198.18.20.11
    """
    words, config = last_is_config(pairs, config, socket)
    rows = [{"prefix": key, "real": real} for key, real in _pairs("source-routes add", words)]
    _change("source_routes", config, socket, as_json, add=rows)


@source_routes.command("load")
def load_routes(
    file: _File,
    replace: _Replace = False,
    config: OptionalConfig = None,
    socket: SocketOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add the source routes of a file until the next reload, a line `prefix,real` each: all of them or none.

    Example: nfcore source-routes load routes.csv --replace
    """
    _change("source_routes", config, socket, as_json, add_file=str(file.absolute()), replace=replace)


@source_routes.command("remove")
def remove_routes(
    prefixes: _Prefixes, config: ConfigOption = None, socket: SocketOption = None, as_json: JsonOption = False
) -> None:
    """Remove source routes until the next reload: new flows of these clients go by the ring.

    Example: nfcore source-routes remove 198.18.7.0/24
    """
    words, config = last_is_config(prefixes, config, socket)
    _named("source-routes remove", words)
    _change("source_routes", config, socket, as_json, remove=words)


def _change_ids(what: str, ids: list[str], config: Path | None, socket: Path | None, as_json: bool) -> None:
    words, config = last_is_config(ids, config, socket)
    command = f"server-ids {what}"
    _named(command, words)
    _change("server_ids", config, socket, as_json, **{what: [_id(command, word) for word in words]})


def _change(kind: str, config: Path | None, socket: Path | None, as_json: bool, **parameters: Any) -> None:
    done = request(find_socket(config, socket), f"katran_accel.{kind}.change", **parameters)
    print(json_text(done) if as_json else ", ".join(f"{what} {count:,}" for what, count in done.items()))


def _list(kind: str, columns: Sequence[str], real: str | None, limit: int, socket: Path, as_json: bool) -> None:
    rows: list[dict[str, Any]] = []
    parameters: dict[str, Any] = {} if real is None else {"real": real}
    while True:
        page = request(socket, f"katran_accel.{kind}.list", limit=min(PAGE, limit - len(rows)), **parameters)
        rows += page[kind]
        if page["next"] is None or len(rows) >= limit:
            break
        parameters["after"] = page["next"]
    if as_json:
        print(json_text({kind: rows, "matching": page["matching"], "total": page["total"]}))
        return
    table = TextTable(*columns)
    for row in rows:
        table.add_row(*(_cell(row[column]) for column in columns))
    show(table)
    print(f"{len(rows):,} listed of {page['matching']:,}, {page['total']:,} in all")


def _cell(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _pairs(command: str, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    _named(command, words)
    for word in words:
        key, sign, real = word.partition("=")
        if not sign:
            raise ConfigError(command, [Problem("", f"is {word!r:.80}; should be KEY=REAL, such as 1001=198.18.20.11")])
        yield key, real


def _named(command: str, words: Sequence[str]) -> None:
    if not words:
        raise ConfigError(command, [Problem("", "names nothing; name at least one")])


def _id(command: str, word: str) -> int:
    if word.isascii() and word.isdecimal() and len(word) <= 10:
        return int(word)
    raise ConfigError(command, [Problem("", f"{word!r:.40} is no server id; should be a number from 1 on")])
