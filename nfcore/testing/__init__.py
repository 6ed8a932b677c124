# SPDX-License-Identifier: Apache-2.0
"""The conformance suite for authors of offload backends and marking strategies: a pytest plugin.

Needs pytest and hypothesis: ``pip install 'nfcore[test]'``. Nothing is imported before it is asked for, since pytest
loads this package in every run of everybody who has nfcore installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backend import BackendConformance
    from .nic import NicUnderTest, Seen
    from .promises import BrokenPromise, NotApplicable
    from .samples import sample_flow, sample_frame, sample_rules
    from .strategy import StrategyConformance, StrategyUnderTest
    from .world import context_for

_HOME = {
    "BackendConformance": "backend",
    "NicUnderTest": "nic",
    "Seen": "nic",
    "BrokenPromise": "promises",
    "NotApplicable": "promises",
    "sample_flow": "samples",
    "sample_frame": "samples",
    "sample_rules": "samples",
    "StrategyConformance": "strategy",
    "StrategyUnderTest": "strategy",
    "context_for": "world",
}
"""Name → the module that has it."""
_NEEDED = ("pytest", "hypothesis")

__all__ = [
    "BackendConformance",
    "BrokenPromise",
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
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in _NEEDED:
            raise ImportError(f"nfcore.testing needs {error.name}: pip install 'nfcore[test]'") from error
        raise
