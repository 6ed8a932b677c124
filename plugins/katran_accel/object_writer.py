# SPDX-License-Identifier: Apache-2.0
"""Writes inventories into the maps of a compiled object, as a Katran control plane does.

It sends all packets to one MAC address, `ctl_array[0]`. Flags, groups of next hops and the end of a real, which are
nfcore's own, are not written.
"""

from __future__ import annotations

from dataclasses import replace

from nfcore.api.flows import Address
from nfcore.errors import HostError
from nfcore.kernel.links import format_mac

from .config import NAME
from .healthcheck.path import source_towards
from .inventory import Inventory
from .map_writer import MapWriter
from .maps import BalancerMaps
from .next_hops import Sending, name_reals


class ObjectWriter(MapWriter):
    """Writes changes into an object's maps."""

    def __init__(self, maps: BalancerMaps) -> None:
        super().__init__(maps, None)

    def _vip_meta(self, inventory: Inventory, number: int) -> tuple[int, int]:
        return inventory.vips[number].flag_bits, number

    def send_by(self, sending: Sending, inventory: Inventory) -> None:
        """Write reals, and the MAC address by which packets go to all of them."""
        for address, number in inventory.reals.items():
            self._maps["reals"].update(number, inventory.real_definition(address))
        default = sending.rows[:1].copy()
        default["pad"] = 0
        self._maps["ctl_array"].write_array(0, default)
        if "pckt_srcs" in self._maps:
            self._write_sources(sending, inventory)

    def _write_sources(self, sending: Sending, inventory: Inventory) -> None:
        """Write the sources of outer headers that the TOML does not give: those that the kernel uses towards reals."""
        given = inventory.table.source_v4, inventory.table.source_v6
        for slot, version in enumerate((4, 6)):
            if given[slot]:
                continue
            reals = [address for address in inventory.reals if address.version == version]
            for facts in sending.devices:
                if (source := source_towards(facts.device.name, reals)) is not None:
                    self._maps["pckt_srcs"].update(slot, inventory.real_definition(source))

    def sent_by_others(self) -> Sending:
        """Give no groups: an object has none."""
        return Sending()

    def sends_by(self, sending: Sending, inventory: Inventory) -> bool:
        """Whether the MAC address is as :meth:`send_by` would leave it, whoever has written it."""
        written = self._maps["ctl_array"].read_slice(0, 1)["mac"]
        return written.tobytes() == sending.rows["mac"][:1].tobytes()

    def macs_in_use(self, inventory: Inventory, devices: int) -> dict[Address, list[bytes]]:
        """Read to what MAC address the program sends packets for each real."""
        mac = self._maps["ctl_array"].read_slice(0, 1)["mac"][0].tobytes()
        return {address: [mac] * devices for address in inventory.reals}

    def _end_reals(self, inventory: Inventory) -> None:
        """Leave the definitions: rings and connections that lead to them are gone."""


def to_one_station(sending: Sending, *, require: bool) -> Sending:
    """Note as a trouble when reals have other next hops than the rest: an object sends all packets to one.

    require: HostError instead.
    """
    default = bytes(sending.rows["mac"][0])
    others = [real for real in sending.groups if sending.mac_of(real, 0) not in (default, None)]
    if not others:
        return sending
    text = f"{NAME}.program sends all packets to {format_mac(default)}, but {name_reals(others)} have another next hop"
    if require:
        raise HostError(f"{text}: set {NAME}.gateway_mac to the address of a router that reaches all")
    return replace(sending, troubles=(*sending.troubles, text))
