# SPDX-License-Identifier: Apache-2.0
"""Counts faults of plugins, without their kind."""

from __future__ import annotations

from collections import Counter

from nfcore.hooks.manager import PluginManager


def errors_of(plugins: PluginManager) -> Counter[tuple[str, str]]:
    """(plugin, hook) → number of faults."""
    errors: Counter[tuple[str, str]] = Counter()
    for (plugin, hook, _), number in plugins.faults.items():
        errors[plugin, hook] += number
    return errors
