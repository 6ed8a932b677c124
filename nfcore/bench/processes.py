# SPDX-License-Identifier: Apache-2.0
"""Measurements in processes of their own, and the end of all of them on Ctrl-C.

Where the kernel puts a map decides which of its lines meet in a cache: figures differ between processes by more than
between the rounds of one. A process may also leave this one's network namespace, and takes what it made with it.
"""

from __future__ import annotations

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
Say = Callable[[str], None]
"""Tells what is going on, for the progress bar."""
_PR_SET_PDEATHSIG = 1
_CLOSED = "a process of the measurement died"


def in_processes(function: Callable[[], _T], count: int) -> list[_T]:
    """Call `function` in `count` processes of its own; what they gave (by pickle), in order.

    HostError with the words of an NfcoreError that one of them raised, or when one died.
    """
    return [in_process(lambda say: function()) for _ in range(count)]


def in_process(function: Callable[[Say], _T], say: Say = lambda words: None) -> _T:
    """Call `function` in a process of its own; what it gave. What it says is said here. Errors as above."""
    (result,) = at_once([function], say)
    return result


def at_once(functions: Sequence[Callable[[Say], _T]], say: Say = lambda words: None) -> list[_T]:
    """Call each function in a process of its own, all at the same time; what they gave, in order. Errors as above."""
    forking = multiprocessing.get_context("fork")
    children, channels = [], []
    answers: dict[Connection, Any] = {}
    try:
        for function in functions:
            ours, theirs = forking.Pipe(duplex=False)
            child = forking.Process(target=_answer, args=(function, theirs, os.getpid()))
            child.start()
            theirs.close()
            children.append(child)
            channels.append(ours)
        while len(answers) < len(channels):
            for channel in wait([each for each in channels if each not in answers]):
                assert isinstance(channel, Connection)
                kind, value = _receive(channel)
                if kind == "said":
                    say(value)
                elif kind == "failed":
                    raise HostError(value)
                else:
                    answers[channel] = value
    except BaseException:
        # Whatever they have made they take away, as after Ctrl-C.
        for child in children:
            if child.is_alive() and child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)
        raise
    finally:
        for child in children:
            child.join()
    return [answers[channel] for channel in channels]


def _receive(channel: Connection) -> tuple[str, Any]:
    try:
        kind, value = channel.recv()
    except EOFError:
        return "failed", _CLOSED
    return kind, value


def _answer(function: Callable[[Say], Any], channel: Connection, parent: int) -> None:
    """Run in the new process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once)
    # A parent that is killed cannot say so.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    try:
        answer = "gave", function(lambda words: channel.send(("said", words)))
    except NfcoreError as error:
        # Its words alone: not every error can be pickled.
        answer = "failed", str(error)
    except KeyboardInterrupt:
        return
    except Exception as error:
        log.debug("traceback", exc_info=error)
        answer = "failed", f"{type(error).__name__}: {error}"
    channel.send(answer)


def stop_once(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal that asks to stop: leave every block in order, and let no second signal cut that short."""
    # Held back from this thread and from the commands that it starts now, which clean up. A handler all the same: of
    # a signal that was on its way already Python would complain aloud, were it ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let a second signal pass."""
