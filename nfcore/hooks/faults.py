# SPDX-License-Identifier: Apache-2.0
"""The kinds of faults in hooks, and the exceptions that replace what a hook must not raise."""

from __future__ import annotations

from enum import StrEnum

from ..errors import describe_error


class Fault(StrEnum):
    """What a plugin did wrong, as the label `kind` of `nfcore_hook_errors_total`."""

    RAISED = "raised"
    WRONG_RESULT = "wrong_answer"
    SLOW = "slow"
    """It blocked the event loop."""
    INTERRUPTED = "broken_off"
    """It blocked the event loop for so long that it was interrupted."""
    STUCK = "stuck"
    """It has not returned for very long, on a device's worker or at the start."""


class HookTimeoutError(BaseException):
    """Interrupts a hook that takes too long. Not an Exception, so that a plugin with ``except Exception`` ends, too."""


class ExitError(RuntimeError):
    """A plugin called ``sys.exit()``, or raised another exception that would end more than the hook."""


class MuteError(RuntimeError):
    """A plugin raised an exception without a readable message: its ``str()`` raises."""


def replacement(error: BaseException, *, keep_interrupt: bool) -> Exception | None:
    """Give the exception to raise in place of one that would end more than the hook, or that has no message.

    None: raise the exception itself. keep_interrupt: a KeyboardInterrupt may come from the user, and stays.
    """
    if isinstance(error, SystemExit):
        return ExitError(f"it called sys.exit({error.code!r})")
    if isinstance(error, Exception):
        return None if _has_message(error) else MuteError(describe_error(error))
    if isinstance(error, HookTimeoutError) or (keep_interrupt and isinstance(error, KeyboardInterrupt)):
        return None
    return ExitError(f"it raised {type(error).__name__}")


def _has_message(error: Exception) -> bool:
    try:
        str(error)
    except Exception:  # noqa: BLE001 - whatever it raises, there is no message
        return False
    return True
