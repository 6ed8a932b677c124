# SPDX-License-Identifier: Apache-2.0
"""The policies of `[offload]`, as the engine asks them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import pytest

from nfcore.api.reasons import Reason
from nfcore.engine.flow_state import FlowState

from .world import World


def test_a_rate_takes_two_reports(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"min_rate": 10.0})
    world.start()
    world.report(1001, 1002, packets=8)
    assert world.reasons() == {"too_slow": 2}
    world.now += 1.0
    world.report(1001, packets=17)
    world.report(1002, packets=18)
    assert world.held() == [1002]
    assert world.reasons() == {"too_slow": 3}
    world.now += 0.1
    world.report(1001, packets=24)
    assert world.held() == [1001, 1002]
    assert world.adds_up()


def test_a_count_that_begins_anew_is_no_negative_rate(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"min_rate": 10.0})
    world.start()
    world.report(1001, packets=1000)
    world.now += 1.0
    world.report(1001, packets=8)
    assert world.held() == []
    world.now += 0.5
    world.report(1001, packets=16)
    assert world.held() == [1001]


@pytest.mark.parametrize(
    ("prefix", "flow", "excluded"),
    [
        ("198.18.1.0/24", "198.18.1.2:{} > 198.18.10.1:80/tcp", True),
        ("198.18.10.1/32", "198.18.1.2:{} > 198.18.10.1:80/tcp", True),
        ("198.18.2.0/24", "198.18.1.2:{} > 198.18.10.1:80/tcp", False),
        ("0.0.0.0/0", "198.18.1.2:{} > 198.18.10.1:80/tcp", True),
        ("::/0", "198.18.1.2:{} > 198.18.10.1:80/tcp", False),
        ("c612::/16", "198.18.1.2:{} > 198.18.10.1:80/tcp", False),  # the same bytes, another family
        ("2001:db8:1::/48", "[2001:db8:1::2]:{} > [2001:db8:a::1]:80/udp", True),
        ("2001:db8:a::1/128", "[2001:db8:1::2]:{} > [2001:db8:a::1]:80/udp", True),
        ("2001:db8:a::2/127", "[2001:db8:1::2]:{} > [2001:db8:a::1]:80/udp", False),
        ("0.0.0.0/0", "[2001:db8:1::2]:{} > [2001:db8:a::1]:80/udp", False),
    ],
)
def test_an_excluded_prefix_counts_at_either_end(
    make: Callable[..., World], prefix: str, flow: str, excluded: bool
) -> None:
    world = make("flow-id", offload={"exclude": [ipaddress.ip_network("203.0.113.0/24"), ipaddress.ip_network(prefix)]})
    world.start()
    world.report(1001, text=flow)
    assert world.reasons() == ({"excluded": 1} if excluded else {})
    assert world.held() == ([] if excluded else [1001])
    assert world.adds_up()


def test_a_vip_gets_no_more_than_its_share(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=10, offload={"max_share": 0.3})
    world.start()
    world.report(1001, 1002, target=101)
    world.report(1003, 1004, 1005, target=102)  # another real of the same VIP
    world.report(2001, 2002, target=201)
    assert world.held() == [1001, 1002, 1003, 2001, 2002]
    assert world.reasons() == {"share": 2}
    assert world.adds_up()


def test_within_one_batch_the_busiest_get_the_share(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=10, offload={"max_share": 0.2})
    world.start()
    batch = world.flows(*range(1001, 1007))
    batch.rows["target"] = [101, 101, 101, 102, 201, 201]
    batch.rows["packets"] = [8, 64, 16, 32, 8, 8]
    world.nf.reports.append(batch)
    world.engine.poll()
    assert world.held() == [1002, 1004, 1005, 1006]
    assert world.reasons() == {"share": 2}


def test_a_share_that_is_given_back_can_be_had_again(make: Callable[..., World]) -> None:
    world = make("dest-id", max_rules=10, offload={"max_share": 0.1})
    world.start()
    world.report(1001, target=101)
    world.report(1002, target=101)
    world.idle_and_gone()
    world.report(1002, target=101)
    assert world.held() == [1002]


def test_what_is_refused_is_judged_anew(make: Callable[..., World]) -> None:
    world = make("flow-id", offload={"exclude": [ipaddress.ip_network("198.18.1.2/32")]})
    world.start()
    world.report(1001)
    assert (world.ports(FlowState.REFUSED), world.why(1001)) == ([1001], Reason.EXCLUDED)
    config = world.context.config
    free = config.offload.model_copy(update={"exclude": []})
    world.engine.apply(type(config)(**{**vars(config), "offload": free}), {})
    world.report(1001, packets=16)
    assert world.held() == [1001]
    assert world.adds_up()
