# SPDX-License-Identifier: Apache-2.0
"""Files of server ids and of source routes: a key and its real on each line, `#` begins a comment.

Written for files of some hundred thousand lines, for which `ipaddress` would take seconds.
"""

from __future__ import annotations

import socket
import stat
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nfcore.api.flows import Address
from nfcore.refusals import explain

from .entries import PREFIX, SERVER_ID, Entries
from .hosts import server_address

MOST_MISTAKES = 20
"""Mistakes of a file that are told."""
MAX_ID = 0xFFFF_FFFF
_ID_WANTED = f"should be a server id from 1 to {MAX_ID:,}, written without separators"
_PREFIX_WANTED = "should be an IPv4 or IPv6 address, or a prefix such as '198.18.7.0/24'"
_FAMILIES = ((4, socket.AF_INET, 32, bytes(12)), (6, socket.AF_INET6, 128, b""))
"""Version, family, longest prefix, and what fills an address up to 16 bytes."""
_LENGTHS = {str(bits): bits for bits in range(129)}


@dataclass(frozen=True, eq=False)
class Lines:
    """What the lines of a file say; those with mistakes are left out."""

    keys: NDArray[Any]
    reals: NDArray[np.int64]
    """Where in `addresses` the real of each line is."""
    addresses: tuple[Address, ...]
    numbers: NDArray[np.int64]
    """Number of each line in the file, from 1."""
    mistakes: tuple[tuple[int, str], ...]
    """Number and fault of the first lines that are wrong."""
    wrong: int
    """How many lines are wrong."""


@dataclass(frozen=True)
class EntryFile:
    """A file that the TOML names, as it was when the TOML was read. Equal to another one with the same content."""

    path: str
    entries: Entries
    lines: Lines = field(compare=False, repr=False)


def read_server_ids(path: object) -> EntryFile:
    """Read a file with lines such as ``1001,198.18.20.11``. ValueError: it cannot be read."""
    return _read(path, _parse_server_ids)


def read_source_routes(path: object) -> EntryFile:
    """Read a file with lines such as ``198.18.7.0/24,198.18.20.11``. ValueError: it cannot be read."""
    return _read(path, _parse_source_routes)


def _read(path: object, parse: Callable[[bytes], tuple[Lines, Entries]]) -> EntryFile:
    if not (isinstance(path, str) and path.startswith("/") and "\0" not in path):
        raise ValueError("should be the absolute path of a file, such as '/etc/nfcore/routes.csv'")
    try:
        # Reading a pipe would wait for its writer.
        content = Path(path).read_bytes() if stat.S_ISREG(Path(path).stat().st_mode) else None
    except OSError as error:
        raise ValueError(f"cannot be read: {explain(error, Path(path))}") from None
    if content is None:
        raise ValueError("is no regular file")
    lines, entries = parse(content)
    return EntryFile(path, entries, lines)


# The model and the checks of the table read the same file, and a reload mostly finds it as it was.
@lru_cache(2)
def _parse_server_ids(content: bytes) -> tuple[Lines, Entries]:
    return _parse(content, SERVER_ID, _parse_id)


@lru_cache(2)
def _parse_source_routes(content: bytes) -> tuple[Lines, Entries]:
    return _parse(content, PREFIX, _parse_prefix)


def _parse(content: bytes, key: np.dtype[Any], parse_key: Callable[[str], bytes]) -> tuple[Lines, Entries]:
    keys, reals, numbers = bytearray(), array("q"), array("q")
    places: dict[str, int] = {}
    addresses: list[Address] = []
    mistakes: list[tuple[int, str]] = []
    wrong = 0
    for number, (key_text, real) in _fields(content):
        try:
            packed = parse_key(key_text)
            if real not in places:
                addresses.append(_parse_real(real))
                places[real] = len(addresses) - 1
        except ValueError as error:
            wrong += 1
            if wrong <= MOST_MISTAKES:
                mistakes.append((number, str(error)))
            continue
        keys += packed
        reals.append(places[real])
        numbers.append(number)
    parsed = np.frombuffer(keys, key)
    lines = Lines(
        parsed,
        np.frombuffer(reals, np.int64),
        tuple(addresses),
        np.frombuffer(numbers, np.int64),
        tuple(mistakes),
        wrong,
    )
    return lines, Entries.of(parsed, lines.reals, addresses)


def _fields(content: bytes) -> Iterator[tuple[int, tuple[str, str]]]:
    """Give number, key and real of each line that has something. What is not UTF-8 makes no valid key or address."""
    for number, text in enumerate(content.decode("utf-8-sig", errors="replace").split("\n"), 1):
        line = text.partition("#")[0].strip() if "#" in text else text.strip()
        if line:
            key, _, real = line.partition(",")
            yield number, (key.rstrip(), real.lstrip())


def _parse_id(text: str) -> bytes:
    # int() would also take signs, underscores and the digits of other scripts.
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_ID)) else 0
    if not 1 <= number <= MAX_ID:
        raise ValueError(f"{_shown(text)} is no server id; {_ID_WANTED}")
    return number.to_bytes(4, "little")


def _parse_prefix(text: str) -> bytes:
    address, slash, bits = text.partition("/")
    version, family, longest, filler = _FAMILIES[":" in address]
    try:
        packed = socket.inet_pton(family, address)
    except (OSError, ValueError):
        raise ValueError(f"{_shown(text)} is no prefix; {_PREFIX_WANTED}") from None
    length = longest
    if slash:
        length = _LENGTHS.get(bits, longest + 1)
        if length > longest:
            raise ValueError(f"{_shown(text)} is no prefix; {_PREFIX_WANTED}")
        if int.from_bytes(packed, "big") & ((1 << longest - length) - 1):
            right = ip_network((packed, length), strict=False)
            raise ValueError(f"{_shown(text)} has host bits; should be '{right}'")
    return bytes((version, length)) + packed + filler


def _parse_real(text: str) -> Address:
    try:
        return server_address(text)
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is no real; {error}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")
