# SPDX-License-Identifier: Apache-2.0
"""Looks at the network go on, whatever fails; they come one after another, and end when the daemon does."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest

from nfcore.api.network_function import NetworkFunction
from nfcore.daemon import network_watcher
from nfcore.daemon.network_watcher import NetworkWatcher
from nfcore.engine.state import EngineState
from nfcore.kernel.network_monitor import NetworkMonitor
from tests.kernel.katran_accel.world import open_world
from tests.waiting import eventually as wait_until

eventually = partial(wait_until, patience=20.0)
Apply = Callable[[], Sequence[str]]


class Function(NetworkFunction):
    """One that finds a number in the network."""

    def __init__(self, name: str, fault: Exception | None = None) -> None:
        self.name, self.fault = name, fault
        self.network = self.used = self.looks = 0

    def resolve(self) -> Apply:
        """Find the number, and use it unless another one has come to be used meanwhile."""
        self.looks += 1
        if self.fault is not None:
            raise self.fault
        found, before = self.network, self.used

        def apply() -> Sequence[str]:
            if self.used != before or found == before:
                return ()
            self.used = found
            return [f"it is {found} now"]

        return apply


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineState]:
    with open_world(tmp_path_factory.mktemp("watcher")) as world:
        yield world.engine.state


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_watcher, "PERIOD", 0.02)


def watch(state: EngineState, monkeypatch: pytest.MonkeyPatch, *functions: Function) -> NetworkWatcher:
    """Watch for these functions; results are applied at once."""
    monkeypatch.setattr(state.context, "nfs", list(functions))
    monkeypatch.setattr(state.context.services.health, "trouble_sources", [])
    return NetworkWatcher(state, lambda call: call())


def troubles(state: EngineState) -> list[str]:
    return [each for source in state.context.services.health.trouble_sources for each in source()]


def test_the_end_does_not_wait_for_the_pause_and_no_look_follows(
    state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_watcher, "SHARE", 1e9)
    function = Function("one")
    watcher = watch(state, monkeypatch, function)
    watcher.start()
    assert eventually(lambda: function.looks)
    end = threading.Thread(target=watcher.close, daemon=True)
    end.start()
    assert eventually(lambda: not end.is_alive())
    assert function.looks == 1


def test_one_that_fails_does_not_keep_the_others_from_looking_and_is_trouble(
    state: EngineState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(network_watcher, "LATE", 0.05)
    bad, good = Function("bad", OSError(24, "Too many open files")), Function("good")
    with watch(state, monkeypatch, bad, good) as watcher, caplog.at_level(logging.ERROR):
        watcher.start()
        good.network = 7
        assert eventually(lambda: good.used == 7)
        assert eventually(
            lambda: any("bad: the network has not been looked at for" in each for each in troubles(state))
        )
        assert any("Too many open files" in each for each in troubles(state))
        bad.fault = None
        assert eventually(lambda: not any(each.startswith("bad:") for each in troubles(state)))
        assert sum("cannot be looked at" in each for each in caplog.messages) == 1


def test_ports_that_cannot_be_found_are_trouble_of_their_own(
    state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_watcher, "LATE", 0.05)
    function = Function("one")
    with watch(state, monkeypatch, function) as watcher:
        monkeypatch.setattr(watcher, "_find_ports", lambda: int("no number"))
        watcher.start()
        function.network = 7
        assert eventually(lambda: function.used == 7)
        assert eventually(lambda: any(each.startswith("interfaces: the network") for each in troubles(state)))


def test_looks_go_on_when_notifications_cannot_be_read(state: EngineState, monkeypatch: pytest.MonkeyPatch) -> None:
    function = Function("one")

    def broken(self: NetworkMonitor) -> bool:
        raise OSError(9, "Bad file descriptor")

    with watch(state, monkeypatch, function) as watcher:
        monkeypatch.setattr(NetworkMonitor, "poll", broken)
        watcher.start()
        assert eventually(lambda: function.looks > 1)


def test_a_dead_thread_is_trouble(state: EngineState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_watcher, "LATE", 0.05)
    with watch(state, monkeypatch, Function("one")) as watcher:
        monkeypatch.setattr(watcher, "_run", lambda: None)
        monkeypatch.setattr(watcher, "_thread", threading.Thread(target=lambda: None))
        watcher.start()
        assert eventually(lambda: any(each.startswith("one: the network") for each in troubles(state)))


def test_a_reload_looks_after_what_the_watcher_has_found_is_in_use(
    state: EngineState, monkeypatch: pytest.MonkeyPatch
) -> None:
    function, calls = Function("one"), queue.SimpleQueue[Callable[[], None]]()
    with watch(state, monkeypatch, function) as watcher:
        monkeypatch.setattr(network_watcher, "PERIOD", 20.0)  # so long the last result is waited for
        monkeypatch.setattr(watcher, "_deliver", calls.put)
        function.network = 1
        watcher._look(function)  # as the thread does
        function.network = 2
        steps = watcher.look_in_steps()
        work, found = next(steps), list[Apply]()
        step = threading.Thread(target=lambda: found.append(work()), daemon=True)
        step.start()
        # The event loop goes on meanwhile: it is this thread.
        while step.is_alive():
            step.join(0.05)
            while not calls.empty():
                calls.get()()
        with pytest.raises(StopIteration) as end:
            steps.send(found[0])
        assert end.value.value == ["it is 2 now"]
        assert function.used == 2


def test_a_reload_that_is_given_up_does_not_end_the_looks(state: EngineState, monkeypatch: pytest.MonkeyPatch) -> None:
    function = Function("one")
    with watch(state, monkeypatch, function) as watcher:
        steps = watcher.look_in_steps()
        next(steps)()
        steps.close()
        watcher.start()
        assert eventually(lambda: function.looks > 2)


def test_that_all_is_well_again_is_nobodys_claim(
    state: EngineState, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = ["another plugin: its table is full"]
    with watch(state, monkeypatch, Function("one")) as watcher, caplog.at_level(logging.WARNING):
        state.context.services.health.trouble_sources.append(lambda: wrong)
        watcher.start()
        assert eventually(lambda: wrong[0] in caplog.messages)
        wrong.clear()
        assert eventually(lambda: any("well again" in each for each in caplog.messages))
        (said,) = (each for each in caplog.messages if "well again" in each)
        assert "next hop" not in said and "its table is full" in said and "one:" not in said
