# SPDX-License-Identifier: Apache-2.0
"""What a program was built with: its features, and in which of Katran's mistakes it follows Katran."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class Quirks:
    """Katran's mistakes and odd habits, one by one. All off: what a user wants, as the docstrings say."""

    gue_checksum: bool = False
    """The outer checksum treats all that is inside as TCP. Off: right with ICMP, 0 with UDP that has none."""
    tcp_errors_need_20_bytes: bool = False
    """ICMP errors that quote less than 20 bytes of TCP are dropped. Off: 8 bytes are enough."""
    quoted_options_drop: bool = False
    """ICMP errors that quote an IPv4 header with options are dropped. Off: the ports behind them are read."""
    dport_only_forgets: bool = False
    """Flows of a HASH_DPORT_ONLY VIP are stored without source, and never found again. Off: they are found."""
    equal_hashes_share_entry: bool = False
    """What a VIP's hash ignores is not in a connection's key either. Off: each connection has an entry of its own."""
    families_share_keys: bool = False
    """198.18.10.1 and c612:a01:: are the same key. Off: a packet goes to a VIP of its family."""
    unfit_dropped_for_all: bool = False
    """Fragments, IP options, cut headers are dropped whoever they are for. Off: if they are for a VIP."""
    echo_for_all: bool = False
    """Echo requests are answered whoever they are for. Off: those for a VIP, others are the stack's."""
    stable_unknown_real_goes_on: bool = False
    """A stable-routing id with a real that is not there is counted as dropped, and routed. Off: it is dropped."""
    ipip_decap_counts_as_v6: bool = False
    """IPIP decapsulation counts as one of an outer IPv6 header. Off: by the outer header."""
    six_in_four_takes_40: bool = False
    """40 bytes are taken off IPv6 in IPv4. Off: 20."""
    echo_in_decap: bool = False
    """A decapsulated echo request is passed as its reply. Off: as it came."""
    ttl_0_wraps: bool = False
    """Decapsulation makes a TTL of 0 255. Off: the packet is dropped."""
    inner_version_unchecked: bool = False
    """GUE over IPv4 holds IPv4, over IPv6 what two bits say. Off: its version; what has none is no tunnel."""
    decap_drops_all_unfit: bool = False
    """The program for reals drops all fragments and IP options. Off: those of tunnels."""
    ids_in_gue_only: bool = False
    """The program for reals counts server ids in GUE alone. Off: in IPIP, too."""
    v6_to_v4_real: bool = False
    """An IPv6 packet for an IPv4 real goes to an IPv6 address that begins with it. Off: GUE can do it, IPIP drops."""
    healthcheck_keeps_ethertype: bool = False
    """An IPv6 probe of an IPv4 real keeps the EtherType of IPv6. Off: it gets that of IPv4."""
    exact_prefix_port: bool = False
    """Not Katran's, but nfcore's so far: a prefix VIP with a port of its own keeps the port in hash and flow."""
    outer_sport_unhidden: bool = False
    """Not Katran's, but nfcore's so far: with HASH_NO_SRC_PORT the outer source is made with the source port."""
    too_big_counts: bool = False
    """Not Katran's, but nfcore's so far: a packet that is too big is counted without too-big generation, too."""
    misses_before_ring: bool = False
    """Not Katran's, but nfcore's so far: a miss is counted, too, when the ring has no real for the flow."""


NFCORE_ONLY = (
    "exact_prefix_port",
    "outer_sport_unhidden",
    "too_big_counts",
    "misses_before_ring",
)
KATRAN = Quirks(**{field.name: field.name not in NFCORE_ONLY for field in fields(Quirks)})
"""All of Katran's mistakes."""


@dataclass(frozen=True)
class Features:
    """Build choices; each is one of Katran's -D options unless it says otherwise."""

    encapsulation: Literal["ipip", "gue"] = "ipip"
    gue_port: int = 6080
    icmp: bool = True
    """nfcore's own choice: without it ICMP is passed."""
    prefix_vips: bool = True
    """CIDR_VIP."""
    prefix_vips_v4: bool = False
    """nfcore's own: prefixes of IPv4, too."""
    too_big: bool = False
    """ICMP_TOOBIG_GENERATION."""
    too_big_mtu: int = 1500
    """The MTU that it tells; always 1500 in Katran."""
    max_frame: int = 1514
    """Bytes of the longest frame without VLAN tags that is balanced."""
    source_routing: bool = False
    """LPM_SRC_LOOKUP."""
    tcp_server_ids: bool = False
    """TCP_SERVER_ID_ROUTING."""
    udp_stable_routing: bool = False
    global_lru: bool = False
    """GLOBAL_LRU_LOOKUP."""
    local_delivery: bool = False
    """LOCAL_DELIVERY_OPTIMIZATION."""
    inline_decap_ipip: bool = False
    inline_decap_gue: bool = False
    strict_decap: bool = False
    """DECAP_STRICT_DESTINATION."""
    hashed_server_ids: bool = False
    """`server_id_map` is a hash map, for connection ids of 32 bits: ids that it does not have are not there, not 0."""
    introspection: bool = False
    vlan: bool = False
    """nfcore's own: frames with one or two tags are balanced, the tags stay."""
    fragments: bool = False
    """nfcore's own: fragments of a VIP go to a real by their source address, all of a datagram to the same one."""
    decap_tcp_server_ids: bool = False
    """DECAP_TPR_STATS, of the program for reals."""
    decap_drops: bool = False
    """nfcore's own: the program for reals counts what it drops."""
    healthcheck_dst_match: bool = False
    healthcheck_src_match: bool = False
    source_match_port: int = 9887
    """KDE_GUE_PORT."""
    quirks: Quirks = Quirks()
