# SPDX-License-Identifier: Apache-2.0
"""What plugins did wrong, without the kind of the fault."""

from __future__ import annotations

from collections import Counter

from nfcore.hooks.manager import PluginManager


def errors_of(plugins: PluginManager) -> Counter[tuple[str, str]]:
    """(plugin, hook) → how often it was at fault."""
    errors: Counter[tuple[str, str]] = Counter()
    for (plugin, hook, _), number in plugins.faults.items():
        errors[plugin, hook] += number
    return errors
