# SPDX-License-Identifier: Apache-2.0
"""`[katran_accel]`: VIPs and reals as they may be written, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nfcore.errors import Remark
from nfcore.plugins.katran_accel.config import HealthcheckTable, KatranTable, VipTable, check_table
from nfcore.plugins.katran_accel.layouts import MAX_PREFIX_VIPS, MAX_REALS, VipFlag

REALS = [{"address": "198.18.20.11"}]


def vip(address: str = "198.18.10.1", **changes: Any) -> dict[str, Any]:
    return {"address": address, "port": 80, "protocol": "tcp", "reals": REALS} | changes


def problems(*vips: object) -> dict[str, str]:
    found = check_table({"vips": list(vips)}, "katran_accel")
    return {problem.path: problem.message for problem in found if not isinstance(problem, Remark)}


def error_of(table: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        VipTable.model_validate(table)
    (error,) = refused.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("198.18.10.1", "198.18.10.1"),
        ("198.18.10.1", "198.18.10.1/32"),
        ("2001:db8::1", "2001:DB8:0:0:0:0:0:1"),
        ("2001:db8::1", "2001:db8::0.0.0.1"),
        ("2001:db8::/64", "2001:0db8:0000::/64"),
    ],
)
def test_a_vip_is_listed_once_however_it_is_written(first: str, second: str) -> None:
    reals = [{"address": "2001:db8::2"}]
    found = problems(vip("198.18.99.9"), vip(first, reals=reals), vip(second, reals=reals))
    assert found.keys() == {"katran_accel.vips[2]"}
    assert "is already katran_accel.vips[1]" in found["katran_accel.vips[2]"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("198.18.10.1", "c612:a01::"),
        ("c612:a01::", "198.18.10.1"),
        ("0.0.0.0/0", "::/0"),
        ("198.18.10.0/24", "c612:a00::/24"),
        ("c612:a00::/32", "198.18.10.0/32"),
    ],
)
def test_vips_of_two_families_with_one_key_in_the_maps(first: str, second: str) -> None:
    """All but the last pair, whose one is a prefix and whose other is an address, which are in two maps."""
    reals = [{"address": "2001:db8::2"}]
    found = problems(vip(first, reals=reals), vip(second, reals=reals))
    if "c612:a00::/32" in (first, second):
        assert found == {}
    else:
        assert found.keys() == {"katran_accel.vips[1]"}
        assert f"{first.lower()} of katran_accel.vips[0] have the same key" in found["katran_accel.vips[1]"]
    assert problems(vip(first, reals=reals), vip(second, port=81, reals=reals)) == {}


def test_port_and_protocol_make_other_vips() -> None:
    assert problems(vip(), vip(port=443), vip(protocol="udp"), vip("198.18.10.0/24")) == {}


@pytest.mark.parametrize("macs", ["own", "any", ["own"], ["own", "00:00:5E:00:01:0a"], ["03:bf:c6:12:0a:01"]])
def test_destinations_are_own_any_or_a_list(macs: Any) -> None:
    table = KatranTable.model_validate({"vips": [vip()], "destination_mac": macs})
    assert table.listed_macs == [bytes.fromhex(mac.replace(":", "")) for mac in macs if ":" in mac]


@pytest.mark.parametrize("macs", ["", "all", [], ["any"], ["02:00"], [1], [["own"]], {"eth1": "own"}, 5, None, True])
def test_other_destinations_are_refused(macs: Any) -> None:
    with pytest.raises(ValidationError, match="'own', 'any', or a list"):
        KatranTable.model_validate({"vips": [vip()], "destination_mac": macs})


def test_a_gateway_may_be_given_by_interface() -> None:
    table = KatranTable.model_validate({"vips": [vip()], "gateway_mac": {"eth1": "auto", "eth2": "02:00:5E:10:00:01"}})
    assert table.fixed_mac("eth2") == bytes.fromhex("02005e100001")
    assert table.fixed_mac("eth1") is table.fixed_mac("eth3") is None
    for wrong in ("02:00", 5, {"eth2": "auto"}, "03:00:5e:10:00:01", ["auto"]):
        (problem,) = check_table({"vips": [vip()], "gateway_mac": {"eth0": "auto", "eth1": wrong}}, "katran_accel")
        assert problem.path == "katran_accel.gateway_mac.eth1" and "'auto' or the MAC address" in problem.message


def test_an_ipv4_real_cannot_serve_an_ipv6_vip() -> None:
    found = problems(vip("2001:db8::1", reals=[{"address": "2001:db8::2"}, {"address": "198.18.20.11"}]))
    assert found.keys() == {"katran_accel.vips[0].reals[1].address"}
    assert "IPv6 is encapsulated in IPv6 only" in found.popitem()[1]


NO_HOSTS = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "169.254.1.1", "224.0.0.1", "239.1.1.1"]
NO_HOSTS += ["255.255.255.255", "::", "::1", "::198.18.1.1", "::ffff:198.18.20.11", "fe80::1", "ff02::1", "ff0e::1"]


@pytest.mark.parametrize("address", NO_HOSTS)
def test_an_address_that_no_host_can_have(address: str) -> None:
    assert "reals.0.address: Value error, should be the address of one server, not " in error_of(
        vip(reals=[{"address": address}])
    )
    (message,) = problems(vip(address, reals=[])).values()
    assert message.startswith(f"is '{address}'; should be the address or the prefix of a service, not ")


def test_an_ipv4_address_within_ipv6_is_said_to_be_one() -> None:
    (message,) = problems(vip("::ffff:198.18.20.11", reals=[])).values()
    assert message.endswith("not an IPv4 address within IPv6: '198.18.20.11'")


@pytest.mark.parametrize("prefix", ["127.0.0.0/30", "224.0.0.0/24", "fe80::/64", "::ffff:0:0/120"])
def test_a_prefix_that_no_host_can_have(prefix: str) -> None:
    (message,) = problems(vip(prefix, reals=[])).values()
    assert "should be the address or the prefix of a service, not " in message


@pytest.mark.parametrize(
    "prefix", ["0.0.0.0/0", "::/0", "128.0.0.0/1", "198.18.0.0/15", "240.0.0.0/8", "2000::/3", "fc00::/7"]
)
def test_a_prefix_in_which_hosts_can_be(prefix: str) -> None:
    reals = [{"address": "2001:db8::2"}]
    assert str(VipTable.model_validate(vip(prefix, reals=reals)).address) == prefix
    assert problems(vip(prefix, reals=reals)) == {}


def test_a_vip_is_not_its_own_real() -> None:
    found = problems(vip(reals=[{"address": "198.18.20.11"}, {"address": "198.18.10.1"}]))
    assert found == {
        "katran_accel.vips[0].reals[1].address": "'198.18.10.1' is the VIP itself: a packet sent there would come back"
    }
    # A real within a VIP's prefix is no VIP: what is sent there is encapsulated, neither TCP nor UDP.
    assert problems(vip("198.18.0.0/15")) == {}


def test_the_address_of_another_vip_is_remarked() -> None:
    (found,) = check_table({"vips": [vip(), vip("198.18.10.2", reals=[{"address": "198.18.10.1"}])]}, "k")
    assert isinstance(found, Remark)
    assert str(found) == (
        "k.vips[1].reals[0].address: '198.18.10.1' is that of vips[0], too: a packet sent there may come back"
    )


@pytest.mark.parametrize(
    ("reals", "said"),
    [
        ([], "is []: packets to this VIP are dropped and counted"),
        (
            [{"address": "198.18.20.11", "weight": 0}, {"address": "198.18.20.12", "weight": 0}],
            "have weight 0, all of them: packets of new connections to this VIP are dropped and counted",
        ),
    ],
)
def test_a_vip_that_nobody_serves_is_allowed_and_remarked(reals: list[Any], said: str) -> None:
    (found,) = check_table({"vips": [vip("198.18.10.2"), vip(reals=reals)]}, "k")
    assert isinstance(found, Remark)
    assert str(found) == f"k.vips[1].reals: {said}"
    VipTable.model_validate(vip(reals=reals))
    served = [*reals, {"address": "198.18.20.13"}]
    assert problems(vip(reals=served)) == {}


def test_several_ports_are_several_vips() -> None:
    assert problems(vip(ports=[80, 443])) == {
        "katran_accel.vips[0].ports": "for several ports, write one [[katran_accel.vips]] for each"
    }


def test_an_ipv6_real_may_serve_an_ipv4_vip() -> None:
    assert problems(vip(reals=[{"address": "2001:db8::2"}])) == {}


def test_a_real_is_listed_once_in_a_vip() -> None:
    reals = [{"address": "2001:db8::2"}, {"address": "198.18.20.11"}, {"address": "2001:DB8::0:2"}]
    assert problems(vip(reals=reals)) == {
        "katran_accel.vips[0].reals[2].address": "'2001:db8::2' is already reals[0] of this VIP"
    }
    assert problems(vip(reals=reals[:2]), vip(port=443, reals=reals[:2])) == {}


def test_more_prefixes_than_the_map_holds() -> None:
    prefixes = [vip(f"198.{18 + number // 256}.{number % 256}.0/24") for number in range(MAX_PREFIX_VIPS + 1)]
    assert problems(*prefixes[1:], vip()) == {}
    assert "257 prefixes; at most 256 fit" in problems(*prefixes)["katran_accel.vips"]


ANYTHING = st.recursive(
    st.one_of(st.none(), st.integers(), st.text(max_size=5), st.just("198.18.10.1")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["address", "port", "protocol", "reals"]), inner)
    ),
)


@given(st.lists(ANYTHING, max_size=4))
def test_values_of_any_type_can_be_checked(vips: list[Any]) -> None:
    assert all(problem.path and problem.message for problem in check_table({"vips": vips}, "katran_accel"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": "198.18.10.1/24"}, "has host bits set"),
        ({"address": "web.example"}, "address: Value error, should be an IPv4 or IPv6 address, or a prefix"),
        ({"address": 3}, "should be an IPv4 or IPv6 address"),
        ({"port": 65_536}, "port: Input should be less than or equal to 65535"),
        ({"port": -1}, "port: Input should be greater than or equal to 0"),
        ({"protocol": "sctp"}, "protocol: Input should be 'tcp' or 'udp'"),
        (
            {"port": [80, 443]},
            "port: Value error, should be one port from 0 (every port) to 65535; for several ports, ",
        ),
        ({"port": "80-90"}, "port: Value error, should be one port"),
        ({"reals": [{"address": "198.18.20.0/24"}]}, "reals.0.address: Value error, should be an IPv4 or IPv6 address"),
        ({"reals": [{"address": "fe80::1%eth0"}]}, "reals.0.address: Value error, should be an IPv4 or IPv6 address"),
        ({"reals": [{"address": "198.18.20.1", "weight": -1}]}, "reals.0.weight"),
        ({"flags": ["no_such_flag"]}, "flags.0: Value error, should be one of "),
    ],
)
def test_what_a_vip_cannot_be(changes: dict[str, Any], message: str) -> None:
    assert message in error_of(vip(**changes))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("198.18.10.1", "198.18.10.1:80/tcp"),
        ("198.18.10.1/32", "198.18.10.1:80/tcp"),
        ("198.18.10.0/24", "198.18.10.0/24:80/tcp"),
        ("2001:DB8::0001", "[2001:db8::1]:80/tcp"),
        ("2001:db8::/64", "[2001:db8::/64]:80/tcp"),
    ],
)
def test_names(address: str, name: str) -> None:
    assert VipTable.model_validate(vip(address)).name == name


@pytest.mark.parametrize(
    ("one", "other", "loses"),
    [
        (vip("198.18.10.0/24"), vip(), True),
        (vip(), vip("198.18.10.0/24"), False),
        (vip(port=0), vip(), True),
        (vip(), vip(port=0), False),
        (vip(port=0), vip("198.18.10.0/24"), True),
        (vip("198.18.10.0/24"), vip(port=0), False),
        (vip("198.18.10.0/25", port=0), vip("198.18.10.0/24"), True),
        (vip(protocol="udp"), vip(), False),
        (vip("198.18.10.0/24", port=81), vip(), False),
        (vip("198.18.11.0/24"), vip(), False),
        (vip("2001:db8::/32", port=0), vip(), False),
        (vip("0.0.0.0/0", port=0), vip(), True),
    ],
)
def test_which_vip_takes_packets_of_another(one: dict[str, Any], other: dict[str, Any], loses: bool) -> None:
    assert VipTable.model_validate(one).loses_to(VipTable.model_validate(other)) is loses


def test_flags_by_name() -> None:
    names = [flag.name.lower() for flag in VipFlag if flag.name]
    table = VipTable.model_validate(vip(flags=[*names, names[0]]))
    assert table.flag_bits == sum(VipFlag)
    assert VipTable.model_validate(vip()).flag_bits == 0


@pytest.mark.parametrize("cpus", ["some", [0, 0], [-1], [128], [True], [0.0], 3, {}])
def test_bad_cpu_lists(cpus: object) -> None:
    with pytest.raises(ValidationError, match="should be 'all' or a list of different CPU numbers below 128"):
        KatranTable.model_validate({"vips": [vip()], "forwarding_cpus": cpus})


@pytest.mark.parametrize("mac", ["02:00:5e:10:00", "02-00-5e-10-00-01", "AUTO", 5])
def test_bad_mac(mac: object) -> None:
    with pytest.raises(ValidationError, match="should be 'auto' or the MAC address"):
        KatranTable.model_validate({"vips": [vip()], "gateway_mac": mac})


@pytest.mark.parametrize(
    ("key", "value", "right"),
    [
        ("source_v4", "2001:db8::1", "should be 'auto' or an IPv4 address of this host"),
        ("source_v4", "198.18.2", "should be 'auto' or an IPv4 address of this host"),
        ("source_v6", "198.18.2.2", "should be 'auto' or an IPv6 address of this host"),
        ("source_v6", "ff02::1", "should be 'auto' or an IPv6 address of this host"),
        ("source_v6", 7, "should be 'auto' or an IPv6 address of this host"),
        ("gateway_mac", "01:00:5e:00:00:01", "should be 'auto' or the MAC address of one station"),
        ("encapsulation", "vxlan", "Input should be 'ipip' or 'gue'"),
        ("gue_port", 0, "greater than or equal to 1"),
        ("base_mark", 0, "greater than or equal to 1"),
        ("base_mark", (1 << 32) - MAX_REALS, "less than or equal to"),
    ],
)
def test_mistakes_in_health_checks(key: str, value: object, right: str) -> None:
    with pytest.raises(ValidationError) as refused:
        HealthcheckTable.model_validate({key: value})
    (error,) = refused.value.errors()
    assert error["loc"] == (key,) and right in error["msg"]


def test_every_real_has_a_mark_of_its_own_and_none_has_mark_0() -> None:
    largest = HealthcheckTable(base_mark=(1 << 32) - 1 - MAX_REALS)
    assert 0 < largest.base_mark + 1 < largest.base_mark + MAX_REALS - 1 < 1 << 32


def test_a_compiled_object_is_an_elf_file_for_bpf(tmp_path: Path) -> None:
    head = bytes.fromhex("7f454c46020101000000000000000000")
    files = {
        "good.o": (head + b"\1\0\xf7\0", None),
        "host.o": (head + b"\1\0\x3e\0", "is an ELF file for another machine than BPF"),
        "big-endian.o": (head[:5] + b"\2" + head[6:] + b"\0\1\0\xf7", "for another machine than BPF"),
        "short.o": (head, "for another machine than BPF"),
        "text.o": (b"int main;", "is no ELF file"),
        "empty.o": (b"", "is no ELF file"),
    }
    for name, (content, wrong) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        found = list(check_table({"program": str(path)}, "katran_accel"))
        assert [problem.path for problem in found] == ([] if wrong is None else ["katran_accel.program"])
        assert wrong is None or (wrong in found[0].message and str(path) in found[0].message)
    (missing,) = check_table({"program": str(tmp_path / "none.o")}, "katran_accel")
    assert "none.o', which cannot be read: No such file or directory" in missing.message
    (pipe,) = check_table({"program": "/dev/null"}, "katran_accel")
    assert pipe.message == "is '/dev/null', which is no file"


def test_what_a_compiled_object_does_not_regard_is_remarked(tmp_path: Path) -> None:
    path = tmp_path / "good.o"
    path.write_bytes(bytes.fromhex("7f454c460201010000000000000000000100f700"))
    table = {"program": str(path), "destination_mac": "any", "vips": [vip("198.18.10.0/24"), vip("2001:db8::/64")]}
    remarks = [each.path for each in check_table(table, "katran_accel") if isinstance(each, Remark)]
    assert remarks == ["katran_accel.destination_mac", "katran_accel.vips[0].address"]
