# SPDX-License-Identifier: Apache-2.0
"""Mistakes in a call of `nfcore decap`, which needs no privileges to find them."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from nfcore.errors import ConfigError, HostError
from nfcore.plugins.katran_accel.decap.command import decap

app = typer.Typer()
app.command()(decap)


def call(*words: str) -> None:
    done = CliRunner().invoke(app, words)
    if done.exception is not None:
        raise done.exception


def test_every_wrong_address_is_named() -> None:
    wrong = ("198.18.20", "224.0.0.1", "::", "fe80::1%eth0", "")
    with pytest.raises(ConfigError) as caught:
        call("eth0", "--dst", "198.18.20.11", *(word for value in wrong for word in ("--dst", value)))
    assert [str(problem) for problem in caught.value.problems] == [
        f"--dst: is {value!r}; should be an IPv4 or IPv6 address of this host, such as 198.18.20.11" for value in wrong
    ]


def test_numbers_out_of_range_and_options_that_do_not_go_together() -> None:
    for words in (("--gue", "0"), ("--gue", "65536"), ("--server-id", "0"), ("--server-id", str(1 << 32))):
        with pytest.raises(SystemExit) as left:
            call("eth0", *words)
        assert left.value.code == 2
    with pytest.raises(ConfigError, match="--remove: does not go with --stats"):
        call("eth0", "--stats", "--remove")


@pytest.mark.parametrize("words", [(), ("--stats",), ("--remove",)])
def test_an_interface_that_does_not_exist(words: tuple[str, ...]) -> None:
    with pytest.raises(HostError, match="no interface named nothere in this network namespace"):
        call("nothere", *words)
