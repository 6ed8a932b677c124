# SPDX-License-Identifier: Apache-2.0
"""The conformance suites for authors of backends, marking strategies and network functions: a pytest plugin.

Needs pytest and hypothesis: ``pip install 'nfcore[test]'``. Names are imported at their first use, since pytest loads
this package in every run wherever nfcore is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import BackendConformance
    from .function_run import FunctionDriver, FunctionUnderTest
    from .neighbour import Neighbour
    from .network_function import NetworkFunctionConformance
    from .nic import NicUnderTest, Seen
    from .plugin_context import context_for
    from .promises import BrokenPromise, NotApplicable
    from .samples import sample_flow, sample_frame, sample_rules
    from .strategy import StrategyConformance, StrategyUnderTest

_MODULES = {
    "BackendConformance": "backend",
    "FunctionDriver": "function_run",
    "FunctionUnderTest": "function_run",
    "NetworkFunctionConformance": "network_function",
    "Neighbour": "neighbour",
    "NicUnderTest": "nic",
    "Seen": "nic",
    "BrokenPromise": "promises",
    "NotApplicable": "promises",
    "sample_flow": "samples",
    "sample_frame": "samples",
    "sample_rules": "samples",
    "StrategyConformance": "strategy",
    "StrategyUnderTest": "strategy",
    "context_for": "plugin_context",
}
"""Name → the module that defines it."""
_REQUIRED = ("pytest", "hypothesis")

__all__ = [
    "BackendConformance",
    "BrokenPromise",
    "FunctionDriver",
    "FunctionUnderTest",
    "Neighbour",
    "NetworkFunctionConformance",
    "NicUnderTest",
    "NotApplicable",
    "Seen",
    "StrategyConformance",
    "StrategyUnderTest",
    "context_for",
    "sample_flow",
    "sample_frame",
    "sample_rules",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in _REQUIRED:
            raise ImportError(f"nfcore.testing needs {error.name}: pip install 'nfcore[test]'") from error
        raise
