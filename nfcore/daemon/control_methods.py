# SPDX-License-Identifier: Apache-2.0
"""The methods of the daemon's socket. Plugins add more, such as `stats`.

Methods that only read are for all who may open the socket, the others for root and the daemon's own user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..engine.engine import Engine
from ..errors import ConfigError, Problem
from .event_queries import follow
from .flow_queries import explain, list_flows
from .reload import Reloader

FLOWS_PARAMETERS = {"states", "match", "sort", "reverse", "limit", "ended"}


def register_methods(engine: Engine, reloader: Reloader) -> None:
    """Register ``flows``, ``explain``, ``events`` and ``health``, which only read, and ``offload`` and ``reload``."""
    services = engine.context.services

    def flows(parameters: Mapping[str, Any]) -> Any:
        unknown = parameters.keys() - FLOWS_PARAMETERS
        if unknown:
            known = ", ".join(sorted(FLOWS_PARAMETERS))
            raise ConfigError("flows", [Problem(sorted(unknown)[0], f"is no parameter; there are: {known}")])
        return list_flows(engine.state, **parameters)

    def explain_flow(parameters: Mapping[str, Any]) -> Any:
        return explain(engine.state, str(parameters.get("flow", "")))

    def health(parameters: Mapping[str, Any]) -> Any:
        programs = {name: asdict(attachment) for name, attachment in services.health.attached.items()}
        of_daemon = services.health
        return {
            "programs": programs,
            "troubles": list(of_daemon.troubles()),
            "warnings": list(of_daemon.warnings()),
        }

    def offload(parameters: Mapping[str, Any]) -> Any:
        on = parameters.get("on")
        if on is not None and not isinstance(on, bool):
            raise ConfigError("offload", [Problem("on", f"is {on!r}; should be true or false")])
        removed = 0 if on is None else engine.switch(on=on)
        return {"on": engine.state.switched_on, "rules_removed": removed}

    async def reload_configuration(parameters: Mapping[str, Any]) -> Any:
        return asdict(await reloader.reload())

    def events(parameters: Mapping[str, Any]) -> Any:
        return follow(engine.state, parameters)

    for name, method in {"flows": flows, "explain": explain_flow, "events": events, "health": health}.items():
        services.register_method(name, method, reads=True)
    for name, method in {"offload": offload, "reload": reload_configuration}.items():
        services.register_method(name, method)
