# SPDX-License-Identifier: Apache-2.0
"""Checks that the hooks of a plugin fit their specifications, before any of them is called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from ..api.hookspecs import API, PROJECT, Hooks
from ..errors import NfcoreError

HOOKS = {name: spec for name, spec in vars(Hooks).items() if hasattr(spec, f"{PROJECT}_spec")}
"""Hook → specification, in the order of `nfcore.api.hookspecs`."""


def describe(name: str, function: Callable[..., Any]) -> str:
    """Write the signature of a hook, such as ``setup(context: Context) -> None``."""
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    text = str(signature.replace(parameters=parameters))
    return name + (text.replace("'", "") if "'" in text else text)


def check(plugin: object, name: str) -> list[str]:
    """Compare a plugin with the specifications. NfcoreError names the plugin, the hook and both signatures.

    Gives remarks about probable mistakes that are no errors: methods that have a hook's name but are no hooks.
    """
    remarks = []
    version = getattr(plugin, f"{PROJECT}_api", API)
    if version != API:
        advice = "a newer nfcore" if isinstance(version, int) and version > API else "a newer release of the plugin"
        raise NfcoreError(
            f"plugin {name!r}: was written for version {version!r} of the hooks, this nfcore has {API}: "
            f"install {advice}"
        )
    for hook, function, options in _members(plugin):
        if options is not None:
            _check_hook(name, hook, function, options)
        elif hook in HOOKS:
            remarks.append(f"plugin {name}: {hook} has a hook's name without @hookimpl: it will not be called")
    return remarks


def _members(plugin: object) -> Iterator[tuple[str, Any, dict[str, Any] | None]]:
    """Give the methods of a plugin: name in the specification, function, options of ``@hookimpl`` or None."""
    for attribute in dir(type(plugin)):
        if attribute.startswith("__") or isinstance(getattr(type(plugin), attribute, None), property):
            continue
        function = getattr(plugin, attribute, None)
        if inspect.isroutine(function):
            options = getattr(function, f"{PROJECT}_impl", None)
            yield (options or {}).get("specname") or attribute, function, options


def _check_hook(plugin: str, hook: str, function: Callable[..., Any], options: dict[str, Any]) -> None:
    found = describe(hook, function)
    spec = HOOKS.get(hook)
    if spec is None:
        close = difflib.get_close_matches(hook, HOOKS, n=1)
        advice = f"did you mean {describe(close[0], HOOKS[close[0]])}?" if close else f"there are: {', '.join(HOOKS)}"
        raise NfcoreError(f"plugin {plugin!r}: {found} is no hook of nfcore; {advice}")
    if options.get("wrapper") or options.get("hookwrapper"):
        raise NfcoreError(
            f"plugin {plugin!r}: {found} is a wrapper; nfcore calls a hook on one plugin at a time and ignores wrappers"
        )
    parameters = inspect.signature(function).parameters.values()
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    keyword_only = [parameter.name for parameter in required if parameter.kind is parameter.KEYWORD_ONLY]
    if keyword_only:
        raise NfcoreError(
            f"plugin {plugin!r}: {found} takes {', '.join(map(repr, keyword_only))} by keyword only; should be "
            f"{describe(hook, spec)}"
        )
    unknown = [parameter.name for parameter in required if parameter.name not in inspect.signature(spec).parameters]
    if unknown:
        raise NfcoreError(
            f"plugin {plugin!r}: {found} takes {', '.join(map(repr, unknown))}, which the hook does not have; "
            f"should be {describe(hook, spec)}, or with fewer arguments"
        )
