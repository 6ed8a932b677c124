# SPDX-License-Identifier: Apache-2.0
"""The table of the TOML: every mistake is reported with its full key, all in one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from nfcore.errors import ConfigError

from .strategy_run import OWNERS, load, toml

EXAMPLE = Path(__file__).parents[1] / "example.toml"


def mistakes(folder: Path, text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as refused:
        load(folder, text)
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert len(found) == len(refused.value.problems)
    return found


def test_the_example_is_right(tmp_path: Path) -> None:
    config, _ = load(tmp_path, EXAMPLE.read_text(encoding="utf-8"))
    assert config.resolved()["tenant_marks"]["owners"][1] == {
        "name": "green",
        "block": 2,
        "vips": ["198.18.11.1:80/tcp", "[2001:db8:11::1]:80/tcp"],
    }


def test_an_empty_table_is_right(tmp_path: Path) -> None:
    config, _ = load(tmp_path, toml(owners=""))
    assert config.resolved()["tenant_marks"] == {"bits": 2, "owners": []}


def test_all_mistakes_in_one_run(tmp_path: Path) -> None:
    more = """
[[tenant_marks.owners]]
name = "blue"
block = 3
vips = ["198.18.10.7:80/tcp", "198.18.12.1", "198.18.12.1", "198.18.11.1:81/tcp"]

[[tenant_marks.owners]]
name = "default"
block = 4
vips = ["198.18.13.1/24"]
colour = 1
"""
    found = mistakes(tmp_path, toml(OWNERS + more, bits=2, width=2))
    path = "tenant_marks.owners"
    assert found == {
        "tenant_marks.owners[2].name": "'blue' is already owners[0]'s; should be another",
        "tenant_marks.owners[2].block": "3 is already owners[1]'s; should be another",
        "tenant_marks.owners[2].vips[0]": "'198.18.10.7:80/tcp' overlaps '198.18.10.0/24', which is already at "
        "owners[0].vips[0]; a VIP has one owner",
        "tenant_marks.owners[2].vips[2]": "'198.18.12.1' is already at owners[2].vips[1]; a VIP has one owner",
        "tenant_marks.owners[3].name": "is 'default'; should be 1 to 32 letters, digits, '_', '.' or '-', and not "
        "'default'",
        "tenant_marks.owners[3].block": "is 4; with tenant_marks.bits = 2 it should be 1 to 3",
        "tenant_marks.owners[3].vips[0]": found[f"{path}[3].vips[0]"],
        "tenant_marks.owners[3].colour": found[f"{path}[3].colour"],
    }
    assert "has host bits set" in found[f"{path}[3].vips[0]"]
    assert "unknown key" in found[f"{path}[3].colour"]


def test_blocks_have_to_fit_into_a_mark(tmp_path: Path) -> None:
    assert mistakes(tmp_path, toml(bits=4, width=4)) == {
        "tenant_marks.bits": "is 4; marking.width = 4 leaves no bits for targets: should be less than 4"
    }
    load(tmp_path, toml(bits=4, width=5))


def test_without_the_strategy_the_width_does_not_matter(tmp_path: Path) -> None:
    text = toml(bits=4, width=4).replace('["tenant_marks"]', '["tenant_marks", "marking"]')
    load(tmp_path, text.replace('"tenant"', '"dest-id"'))


@pytest.mark.parametrize("owners", ["owners = 3", "owners = [3]", 'owners = [{vips = "x"}]', "owners = [{vips = [1]}]"])
def test_values_of_a_wrong_type_are_reported_once(tmp_path: Path, owners: str) -> None:
    assert all(path.startswith("tenant_marks.owners") for path in mistakes(tmp_path, toml(owners)))
