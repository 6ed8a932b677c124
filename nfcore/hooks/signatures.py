# SPDX-License-Identifier: Apache-2.0
"""Whether a plugin's hooks fit their specifications, found out before any of them is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..api.hookspecs import API, PROJECT, Hooks
from ..errors import NfcoreError

HOOKS = {name: spec for name, spec in vars(Hooks).items() if hasattr(spec, f"{PROJECT}_spec")}
"""Specification by name, in the order of the page."""


def describe(name: str, function: Callable[..., Any]) -> str:
    """Write a hook as its definition has it, such as ``setup(context: Context) -> None``."""
    signature = inspect.signature(function)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    text = str(signature.replace(parameters=own))
    return name + (text.replace("'", "") if "'" in text else text)


def check(plugin: object, name: str) -> list[str]:
    """Compare a plugin with the specifications. NfcoreError names the plugin, the hook and both signatures.

    Gives what is no error, but hardly meant: a method that is named like a hook and is none.
    """
    remarks = []
    wanted = getattr(plugin, f"{PROJECT}_api", API)
    if wanted != API:
        advice = "a newer nfcore" if isinstance(wanted, int) and wanted > API else "a newer release of the plugin"
        raise NfcoreError(
            f"plugin {name!r}: was written for version {wanted!r} of the hooks, this nfcore has {API}: install {advice}"
        )
    for hook, function, options in _members(plugin):
        if options is not None:
            _check_hook(name, hook, function, options)
        elif hook in HOOKS:
            remarks.append(f"plugin {name}: {hook} has a hook's name without @hookimpl: it will not be called")
    return remarks


def _members(plugin: object) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """Methods of a plugin: name in the specification, function, options of ``@hookimpl`` or None."""
    for attribute in dir(type(plugin)):
        if attribute.startswith("__") or isinstance(getattr(type(plugin), attribute, None), property):
            continue
        function = getattr(plugin, attribute, None)
        if inspect.isroutine(function):
            options = getattr(function, f"{PROJECT}_impl", None)
            yield (options or {}).get("specname") or attribute, function, options


def _check_hook(plugin: str, hook: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    mine = describe(hook, function)
    spec = HOOKS.get(hook)
    if spec is None:
        close = difflib.get_close_matches(hook, HOOKS, n=1)
        advice = f"did you mean {describe(close[0], HOOKS[close[0]])}?" if close else f"there are: {', '.join(HOOKS)}"
        raise NfcoreError(f"plugin {plugin!r}: {mine} is no hook of nfcore; {advice}")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise NfcoreError(
            f"plugin {plugin!r}: {mine} is a wrapper; a hook is called on one plugin at a time, so none is wrapped"
        )
    hidden = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    ]
    if hidden:
        raise NfcoreError(
            f"plugin {plugin!r}: {mine} takes {', '.join(map(repr, hidden))} by keyword only; should be "
            f"{describe(hook, spec)}"
        )
    given = set(inspect.signature(spec).parameters) - {"self"}
    taken = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self" and parameter.default is parameter.empty
    ]
    unknown = [argument for argument in taken if argument not in given]
    if unknown:
        raise NfcoreError(
            f"plugin {plugin!r}: {mine} takes {', '.join(map(repr, unknown))}, which the hook does not give; "
            f"should be {describe(hook, spec)}, or with fewer arguments"
        )
