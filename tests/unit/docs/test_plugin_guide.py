# SPDX-License-Identifier: Apache-2.0
"""The plugin guide has a section for every hook, with its true signature, caller and users."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import fields

import pytest

from nfcore.api.context import Context
from nfcore.api.flows import FLOW_ROW, Anything, FlowMatch, Wild
from nfcore.api.hookspecs import ROLES, CalledOn
from nfcore.api.network_function import TargetFacts
from nfcore.api.rules import COOKIE_TAG, RULE_ROW, Capabilities, Device, Drop, Rule, SetMark
from nfcore.hooks import discovery
from nfcore.hooks.faults import Fault
from nfcore.hooks.manager import TRACE_VARIABLE, PluginManager
from nfcore.hooks.signatures import HOOKS, describe
from nfcore.testing import NicUnderTest
from nfcore.testing.function_run import FUNCTION_ABILITIES
from nfcore.testing.nic import ABILITIES as NIC_ABILITIES
from tests.paths import ROOT

from .guide import TEXT, example, label, sections, signature

SECTIONS = sections()


def test_every_hook_has_a_section_and_nothing_else_has() -> None:
    assert sorted(SECTIONS) == sorted(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
def test_the_signature_is_that_of_the_hook(hook: str) -> None:
    assert signature(hook) == describe(hook, HOOKS[hook])


@pytest.mark.parametrize("hook", HOOKS)
def test_the_guide_says_where_the_hook_is_called(hook: str) -> None:
    role = ROLES[hook]
    assert label(SECTIONS[hook], "Called on") == role.asked
    assert label(SECTIONS[hook], "Runs on") == role.runs


@pytest.mark.parametrize("hook", HOOKS)
def test_the_guide_lists_the_plugins_that_have_the_hook(hook: str) -> None:
    plugins = PluginManager()
    own = [name for name in discovery.installed() if discovery.describe(name).distribution == "nfcore"]
    for name in own:
        plugins.load(name)
    listed = re.findall(r"`(\w+)`", label(SECTIONS[hook], "Used by"))
    assert listed == sorted(plugins.implementing(hook))


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_has_the_hook(hook: str) -> None:
    functions = [node for node in ast.walk(ast.parse(example(hook))) if isinstance(node, ast.FunctionDef)]
    assert hook in [function.name for function in functions]


def test_every_hook_has_a_test_of_its_own() -> None:
    tree = ast.parse((ROOT / "tests/unit/hooks/test_hooks.py").read_text(encoding="utf-8"))
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {f"test_{hook}" for hook in HOOKS} <= tests


def test_rows_and_fields_are_those_that_exist() -> None:
    """In their tables, in the order of the code; a rule's fields are in the text below."""
    given = TEXT.split("## Arguments of hooks", 1)[1].split("\n## ", 1)[0]
    assert sorted(first_cells(given)) == sorted(FLOW_ROW.names or ())
    for name in RULE_ROW.names or ():
        assert f"`{name}`" in given
    capabilities = TEXT.split("## Capabilities", 1)[1].split("\n## ", 1)[0]
    assert first_cells(capabilities) == [
        "mark_width",
        *[field.name for field in fields(Capabilities) if field.name != "mark_width"],
    ]


def first_cells(text: str) -> list[str]:
    """Names in the first cells of tables."""
    rows = re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_the_guide_lists_every_kind_of_fault() -> None:
    faults = TEXT.split("| kind of fault |", 1)[1]
    assert re.findall(r"^\| `(\w+)` \|", faults, flags=re.MULTILINE) == [str(fault) for fault in Fault]
    assert TRACE_VARIABLE in TEXT


def test_no_hook_has_two_sections() -> None:
    assert len(re.findall(r"^### `", TEXT, flags=re.MULTILINE)) == len(HOOKS)
    assert {role.asked for role in ROLES.values()} == set(CalledOn)


def test_links_are_valid() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    titles = re.findall(r"^#+ (.*)$", TEXT, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors


OBJECTS = (FlowMatch, Wild, Rule, SetMark, Drop, TargetFacts)


def test_the_objects_of_flows_and_rules_are_those_of_the_code() -> None:
    given = re.findall(r"^\| `(\w+)\((.*?)\)` \(`([\w.]+)`\) \|", TEXT, flags=re.MULTILINE)
    right = [(each.__name__, ", ".join(field.name for field in fields(each)), each.__module__) for each in OBJECTS]
    assert given == right
    section = TEXT.split("## Flows and rules as objects", 1)[1].split("\n## ", 1)[0]
    assert re.search(r"`COOKIE_TAG` \(`nfcore.api.rules`\), (0x\w+),", section)[1] == hex(COOKIE_TAG)  # type: ignore[index]
    assert re.findall(r"`Anything\.(\w+)` \((\d)\)", section) == [(each.name, str(each.value)) for each in Anything]
    for name in ("to_key", "from_key", "parse", "family"):
        assert name in section and hasattr(FlowMatch, name)
    assert "context.target_facts(" in section and hasattr(Context, "target_facts")


@pytest.mark.parametrize(("what", "abilities"), [("NIC", NIC_ABILITIES), ("function", FUNCTION_ABILITIES)])
def test_the_keys_of_lacks_are_those_of_the_suite(what: str, abilities: Mapping[str, str]) -> None:
    section = TEXT.split("\n## Testing\n", 1)[1].split("\n## ", 1)[0]
    keys = section.split(f"State in `lacks` what your {what}", 1)[1].split("Its keys:\n\n", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"^- `(\w+)`", keys, flags=re.MULTILINE) == list(abilities)


def test_a_key_of_lacks_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="lacks has 'sned'; its keys are send, restart"):
        NicUnderTest(object(), Device("eth1", 1), lacks={"sned": "no NIC"})
