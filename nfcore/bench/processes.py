# SPDX-License-Identifier: Apache-2.0
"""Runs measurements in child processes, and ends all of them on Ctrl-C.

The address of a map in memory decides which of its lines share a cache set, so times differ more between processes
than between the rounds of one process. A child can also move into its own network namespace, which ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any, NoReturn, TypeVar

from ..errors import HostError, NfcoreError

log = logging.getLogger(__name__)
_T = TypeVar("_T")
ShowProgress = Callable[[str], None]
"""Takes a message about the progress of a measurement."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_DIED = "a process of the measurement died"


def in_processes(function: Callable[[], _T], count: int) -> list[_T]:
    """Call `function` in `count` child processes, one after the other; return the results (by pickle), in order.

    HostError with the message of an error that one of them raised, or when one died.
    """
    return [in_process(lambda show_progress: function()) for _ in range(count)]


def in_process(function: Callable[[ShowProgress], _T], show_progress: ShowProgress = lambda message: None) -> _T:
    """Call `function` in a child process; return its result. `show_progress` gets its messages. Errors as above."""
    (result,) = at_once([function], show_progress)
    return result


def at_once(
    functions: Sequence[Callable[[ShowProgress], _T]], show_progress: ShowProgress = lambda message: None
) -> list[_T]:
    """Call each function in a child process, all at the same time; return the results, in order. Errors as above."""
    fork_context = multiprocessing.get_context("fork")
    children, channels = [], []
    results: dict[Connection, Any] = {}
    try:
        for function in functions:
            receiver, sender = fork_context.Pipe(duplex=False)
            child = fork_context.Process(target=_run_in_child, args=(function, sender, os.getpid()))
            child.start()
            sender.close()
            children.append(child)
            channels.append(receiver)
        while len(results) < len(channels):
            for channel in wait([channel for channel in channels if channel not in results]):
                assert isinstance(channel, Connection)
                kind, value = _receive(channel)
                if kind == "progress":
                    show_progress(value)
                elif kind == "failed":
                    raise HostError(value)
                else:
                    results[channel] = value
    except BaseException:
        # They clean up, as after Ctrl-C.
        for child in children:
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)
        raise
    finally:
        for child in children:
            child.join()
    return [results[channel] for channel in channels]


def _receive(channel: Connection) -> tuple[str, Any]:
    try:
        kind, value = channel.recv()
    except EOFError:
        return "failed", _DIED
    return kind, value


def _run_in_child(function: Callable[[ShowProgress], Any], channel: Connection, parent: int) -> None:
    """Call `function` in the child process and send its result, or the message of its error, to the parent."""
    for number in STOP_SIGNALS:
        signal.signal(number, stop_once)
    # A parent that is killed cannot stop its children itself.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    with contextlib.suppress(KeyboardInterrupt):
        message = _result(function, channel)
        # It ends now by itself. A parent that stops its children must not interrupt the exit.
        for number in STOP_SIGNALS:
            signal.signal(number, _ignore)
        channel.send(message)


def _result(function: Callable[[ShowProgress], Any], channel: Connection) -> tuple[str, Any]:
    try:
        return "done", function(lambda text: channel.send(("progress", text)))
    except NfcoreError as error:
        # Only its message: not every error can be pickled.
        return "failed", str(error)
    except Exception as error:
        log.debug("traceback", exc_info=error)
        return "failed", f"{type(error).__name__}: {error}"


def stop_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGINT or SIGTERM: raise KeyboardInterrupt, and let no second signal interrupt the clean-up."""
    # Blocked in this thread, and so in the commands that it starts to clean up. A signal that is already pending in
    # Python gets an empty handler: with SIG_IGN Python would print an error.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for stop_signal in STOP_SIGNALS:
        signal.signal(stop_signal, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Ignore a second signal."""
