# SPDX-License-Identifier: Apache-2.0
"""`[stats]`: the address of the HTTP endpoint for Prometheus."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated

from pydantic import BeforeValidator

from nfcore.api.config import ConfigTable

DEFAULT_LISTEN = "127.0.0.1:9464"


def split_listen(listen: str) -> tuple[str, int]:
    """Return address and port of `listen`; ValueError shows the right form."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", listen)
    try:
        if not found or not 1 <= int(found[3]) <= 0xFFFF:
            raise ValueError
        address = ip_address(found[1] or found[2])
        if (address.version == 6) != bool(found[1]):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"should be an address and a port, such as '{DEFAULT_LISTEN}' or '[::1]:9464', or \"\" for none"
        ) from None
    return str(address), int(found[3])


def _listen(value: object) -> str:
    if value is False or value == "":
        return ""
    split_listen(value if isinstance(value, str) else "?")
    return str(value)


class StatsTable(ConfigTable):
    """`[stats]`."""

    listen: Annotated[str, BeforeValidator(_listen)] = DEFAULT_LISTEN
    """Address and port of the HTTP endpoint for Prometheus; empty, or `false`, for none."""
