# SPDX-License-Identifier: Apache-2.0
"""Server ids and source routes as arrays do what dicts would, and files of them are read line by line."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfcore.api.config import Network
from nfcore.api.flows import Address
from nfcore.plugins.katran_accel.entries import PREFIX, SERVER_ID, Entries, key_text, prefix_key
from nfcore.plugins.katran_accel.entry_files import read_server_ids, read_source_routes

REALS = [ip_address(each) for each in ("198.18.20.11", "198.18.20.12", "2001:db8:20::11")]
# Few different ones, so that they meet; some whose last byte is 0.
IDS = st.dictionaries(st.integers(1, 9) | st.sampled_from([256, 65_536, (1 << 32) - 1]), st.sampled_from(REALS))
PREFIXES = st.sampled_from(
    [
        *map(ip_network, ("0.0.0.0/0", "198.18.0.0/15", "198.18.0.0/16", "198.18.0.1/32", "198.18.0.0/32")),
        *map(ip_network, ("::/0", "c612::/15", "c612::/16", "2001:db8::/32", "2001:db8::1/128")),
    ]
)
ROUTES = st.dictionaries(PREFIXES, st.sampled_from(REALS))


def of_ids(model: dict[int, Address]) -> Entries:
    return Entries.of_server_ids(model.items())


def of_routes(model: dict[Network, Address]) -> Entries:
    return Entries.of_routes(model.items())


def back(entries: Entries) -> dict[str, Address]:
    """Entries as a dict by the text of their keys."""
    return {key_text(key): entries.real(place) for place, key in enumerate(entries.keys)}


def texts(model: dict[Any, Address]) -> dict[str, Address]:
    return {str(key).removesuffix("/32" if "." in str(key) else "/128"): real for key, real in model.items()}


BOTH = st.one_of(
    st.tuples(st.just(of_ids), IDS, IDS),
    st.tuples(st.just(of_routes), ROUTES, ROUTES),
)


@given(BOTH)
def test_entries_do_what_dicts_do(case: Any) -> None:
    make, one, other = case
    first, second = make(one), make(other)
    assert back(first) == texts(one)
    assert set(first.addresses) == set(one.values())
    assert back(first.joined(second)) == texts(other | one)
    assert back(first.without(second.keys)) == texts({key: one[key] for key in one if key not in other})
    differing = {key: one[key] for key in one if other.get(key) != one[key]}
    assert back(first.select(first.differing(second))) == texts(differing)
    assert (first == second) == (one == other)
    for each in (first.joined(second), first.without(second.keys), first.select(first.differing(second))):
        assert each == make({parse(text): real for text, real in back(each).items()})


def parse(text: str) -> int | IPv4Network | IPv6Network:
    return int(text) if text.isdecimal() else ip_network(text)


@given(IDS, st.integers(1, 300))
def test_pages_go_on_after_any_key(model: dict[int, Address], key: int) -> None:
    assert of_ids(model).after(np.array([key], SERVER_ID)) == sum(known <= key for known in model)


def test_numbers_of_reals() -> None:
    entries = of_ids({9: REALS[0], 7: REALS[2], 8: REALS[0]})
    assert entries.numbers({REALS[0]: 5, REALS[2]: 3, REALS[1]: 1}).tolist() == [3, 5, 5]


@given(st.lists(st.tuples(PREFIXES, st.sampled_from(REALS))))
def test_a_file_says_what_its_lines_say(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "routes.csv"
    path.write_text("".join(f"{prefix} ,\t{real} # {prefix}\r\n\n" for prefix, real in rows), encoding="utf-8-sig")
    found = read_source_routes(str(path))
    assert found.lines.keys.tobytes() == b"".join(prefix_key(prefix) for prefix, _ in rows)
    assert found.lines.numbers.tolist() == [2 * number + 1 for number in range(len(rows))]
    assert back(found.entries) == texts(dict(reversed(rows)))
    assert found.lines.keys.dtype == PREFIX and not found.lines.wrong


@given(st.binary(max_size=60))
def test_any_content_is_read(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"7,198.18.20.11\n" + content)
    for read in (read_server_ids, read_source_routes):
        lines = read(str(path)).lines
        written = [line for line in (b"7\n" + content).split(b"\n") if line.partition(b"#")[0].strip()]
        assert len(lines.keys) + lines.wrong <= len(written)


def test_files_are_equal_by_their_content(tmp_path: Path) -> None:
    path = tmp_path / "ids.csv"
    path.write_text("7,198.18.20.11\n8,198.18.20.12")
    before = read_server_ids(str(path))
    path.write_text("# another order\n8,198.18.20.12\n7,198.18.20.11\n")
    assert read_server_ids(str(path)) == before
    path.write_text("8,198.18.20.11\n7,198.18.20.11\n")
    assert read_server_ids(str(path)) != before


@pytest.mark.parametrize(
    "path", ["ids.csv", "", 5, None, ["/x"], "/x\0", "/dev/null", "/", "/none/there", "/" + "x" * 5000]
)
def test_what_is_no_file(path: object) -> None:
    with pytest.raises(ValueError, match=r"absolute path of a file|is no regular file|cannot be read: "):
        read_server_ids(path)
