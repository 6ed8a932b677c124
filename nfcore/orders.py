# SPDX-License-Identifier: Apache-2.0
"""What the running daemon can be asked and told over its socket, beside its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .engine import Engine
from .errors import ConfigError, Problem
from .host import PluginHost
from .inspection import explain, list_flows
from .reload import reload

FLOWS_PARAMETERS = {"states", "match", "sort", "limit"}


def register_orders(engine: Engine, host: PluginHost) -> None:
    """Answer ``flows``, ``explain``, ``offload`` and ``reload``."""

    def flows(parameters: Mapping[str, Any]) -> Any:
        unknown = parameters.keys() - FLOWS_PARAMETERS
        if unknown:
            known = ", ".join(sorted(FLOWS_PARAMETERS))
            raise ConfigError("flows", [Problem(sorted(unknown)[0], f"is no parameter; those are: {known}")])
        return list_flows(engine.floor, **parameters)

    def explain_flow(parameters: Mapping[str, Any]) -> Any:
        return explain(engine.floor, str(parameters.get("flow", "")))

    def offload(parameters: Mapping[str, Any]) -> Any:
        on = parameters.get("on")
        if on is not None and not isinstance(on, bool):
            raise ConfigError("offload", [Problem("on", f"is {on!r}; should be true or false")])
        ended = 0 if on is None else engine.switch(on=on)
        return {"on": engine.floor.switched_on, "rules_removed": ended}

    def read_again(parameters: Mapping[str, Any]) -> Any:
        return asdict(reload(engine, host))

    for name, method in {"flows": flows, "explain": explain_flow, "offload": offload, "reload": read_again}.items():
        engine.context.register_method(name, method)
