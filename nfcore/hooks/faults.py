# SPDX-License-Identifier: Apache-2.0
"""What a plugin can do wrong in a hook, and exceptions that must not leave one as they are."""

from __future__ import annotations

from enum import StrEnum

from ..errors import describe_error


class Fault(StrEnum):
    """What a plugin did wrong."""

    RAISED = "raised"
    WRONG_ANSWER = "wrong_answer"
    SLOW = "slow"
    """It held up the event loop."""
    BROKEN_OFF = "broken_off"
    """It held up the event loop for so long that it was interrupted."""
    STUCK = "stuck"
    """It has kept a device's worker waiting for very long."""


class HookTimeoutError(BaseException):
    """Raised into a hook that takes too long. Not an Exception, so that a plugin that catches those does not go on."""


class ExitError(RuntimeError):
    """A plugin wanted the process to end, or raised what only the interpreter may raise."""


class MuteError(RuntimeError):
    """A plugin raised an exception that has no text: its ``str()`` raises."""


def replacement(error: BaseException, *, keep_interrupt: bool) -> Exception | None:
    """Give what to raise instead of an exception that would end more than the hook, or that has no text.

    None: the exception may be raised as it is. keep_interrupt: a KeyboardInterrupt may come from the user.
    """
    if isinstance(error, SystemExit):
        return ExitError(f"it called sys.exit({error.code!r})")
    if isinstance(error, Exception):
        return None if _has_text(error) else MuteError(describe_error(error))
    if isinstance(error, HookTimeoutError) or (keep_interrupt and isinstance(error, KeyboardInterrupt)):
        return None
    return ExitError(f"it raised {type(error).__name__}")


def _has_text(error: Exception) -> bool:
    try:
        str(error)
    except Exception:  # noqa: BLE001 - that is what is asked
        return False
    return True
