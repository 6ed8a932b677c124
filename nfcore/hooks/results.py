# SPDX-License-Identifier: Apache-2.0
"""What hooks may answer: a plugin's answer is looked at before anything relies on it.

A wrong one is the plugin's fault, which is named and counted (`nfcore.hooks.manager`), and counts as no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..api.config import ConfigTable, Section
from ..api.findings import Finding
from ..api.marks import StrategyInfo
from ..api.metrics import MetricFamily
from ..api.rules import INSTALLED_ROW, Capabilities, Outcome, Outcomes

Arguments = Mapping[str, Any]
_WIDEST = 32
MOST = 10_000
"""Objects that an answer may consist of: a generator that never ends must not eat all memory."""
_OF_INSTALLATION = (Outcome.INSTALLED, Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED)
_OF_REMOVAL = (Outcome.REMOVED, Outcome.ABSENT, Outcome.UNSUPPORTED, Outcome.FAILED)


class AnswerError(Exception):
    """An answer that nothing can be done with; says what it was and what it should be."""


def check_result(hook: str, arguments: Arguments, answer: Any) -> Any:
    """Give the answer in a form that can be relied on. AnswerError when there is none; most hooks take any answer."""
    check = _CHECKS.get(hook)
    return answer if check is None else check(arguments, answer)


def read_all(hook: str, answer: Any) -> Any:
    """Let an answer do now what it does only when somebody iterates, as a generator does. AnswerError: it gives more
    than MOST objects.
    """
    if hook not in _OF_OBJECTS or isinstance(answer, list | tuple | str) or not isinstance(answer, Iterable):
        return answer
    given = list(islice(answer, MOST + 1))
    if len(given) > MOST:
        raise AnswerError(f"gave {_short(given[-1])} as answer number {len(given):,}; should end after a few")
    return given


def _numbers(answer: Any, length: int, kinds: str, limit: int, each: str, what: str) -> NDArray[Any]:
    """An array of shape (length,) with an integer (or truth value) up to `limit` in each place."""
    wanted = f"should be an array of {length} {what}, one per {each}"
    if not isinstance(answer, np.ndarray):
        raise AnswerError(f"answered {_short(answer)}; {wanted}")
    if answer.shape != (length,):
        raise AnswerError(f"answered an array of shape {answer.shape}; {wanted}")
    if answer.dtype.kind not in kinds:
        raise AnswerError(f"answered an array of {answer.dtype}; {wanted}")
    if answer.dtype.kind in "iu" and length and (int(answer.min()) < 0 or int(answer.max()) > limit):
        wrong = answer[(answer < 0) | (answer > limit)][0]
        raise AnswerError(f"answered {wrong} for a {each}; {wanted}, each from 0 to {limit}")
    return answer


def _reasons(arguments: Arguments, answer: Any) -> Any:
    if answer is None:
        return None
    return _numbers(answer, len(arguments["batch"]), "iu", 0xFF, "flow", "reasons").astype(np.uint8)


def _marks(arguments: Arguments, answer: Any) -> Any:
    if answer is None:
        return None
    return _numbers(answer, len(arguments["batch"]), "iu", 0xFFFF_FFFF, "flow", "marks").astype(np.uint32)


def _published(arguments: Arguments, answer: Any) -> Any:
    return _numbers(answer, len(arguments["batch"]), "b", 1, "flow", "truth values")


def _outcomes(allowed: Sequence[Outcome], arguments: Arguments, answer: Any) -> Any:
    rules = arguments["rules"]
    wanted = f"should be Outcomes with a status for each of {len(rules)} rules"
    if not isinstance(answer, Outcomes):
        raise AnswerError(f"answered {_short(answer)}; {wanted}")
    if np.shape(answer.status) != (len(rules),):
        raise AnswerError(f"answered statuses of shape {np.shape(answer.status)}; {wanted}")
    status = np.asarray(answer.status)
    known = np.isin(status, allowed) if status.dtype.kind in "iu" else np.zeros(len(rules), dtype=bool)
    if not known.all():
        names = ", ".join(outcome.name for outcome in allowed)
        raise AnswerError(
            f"answered {_short(status[~known][0])} for a rule; a status of nfcore.api.rules.Outcome: {names}"
        )
    if not isinstance(answer.messages, Mapping) or not all(
        isinstance(words, str) for words in answer.messages.values()
    ):
        raise AnswerError(f"gave the words {_short(answer.messages)}; should be a dict from a rule's number to a text")
    counted = answer.counted
    is_counts = isinstance(counted, np.ndarray) and counted.shape == (len(rules), 2) and counted.dtype.kind in "iu"
    if counted is not None and not is_counts:
        raise AnswerError(f"counted {_short(counted)}; should be integers of shape ({len(rules)}, 2), or None")
    return answer


def _rows(arguments: Arguments, answer: Any) -> Any:
    if answer is not None and not (isinstance(answer, np.ndarray) and answer.dtype == INSTALLED_ROW):
        what = f"an array of {answer.dtype}" if isinstance(answer, np.ndarray) else _short(answer)
        raise AnswerError(f"answered {what}; should be rows of nfcore.api.rules.INSTALLED_ROW")
    return answer


def _capabilities(arguments: Arguments, answer: Any) -> Any:
    if answer is None:
        return None
    if not isinstance(answer, Capabilities):
        raise AnswerError(f"answered {_short(answer)}; should be nfcore.api.rules.Capabilities")
    width, size, notes = answer.mark_width, answer.table_size, answer.notes
    wrong = [name for name in ("ipv6", "drop", "counters") if not isinstance(getattr(answer, name), bool)]
    if wrong:
        raise AnswerError(f"answered {wrong[0]} = {_short(getattr(answer, wrong[0]))}; should be True or False")
    if not _is_number(width) or not 0 <= width <= _WIDEST:
        raise AnswerError(f"answered mark_width = {_short(width)}; should be a number of bits from 0 to {_WIDEST}")
    if size is not None and (not _is_number(size) or size < 0):
        raise AnswerError(f"answered table_size = {_short(size)}; should be a number of rules, or None")
    if not isinstance(notes, tuple | list) or not all(isinstance(note, str) for note in notes):
        raise AnswerError(f"answered notes = {_short(notes)}; should be a tuple of texts")
    return answer


def _is_number(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _section(arguments: Arguments, answer: Any) -> Any:
    if answer is None:
        return None
    if (
        not isinstance(answer, Section)
        or not isinstance(answer.model, type)
        or not issubclass(answer.model, ConfigTable)
    ):
        raise AnswerError(
            f"answered {_short(answer)}; should be a nfcore.api.config.Section of a nfcore.api.config.ConfigTable"
        )
    return answer


def _each_is(kind: type, name: str) -> Callable[[Arguments, Any], Any]:
    def check(arguments: Arguments, answer: Any) -> Sequence[Any]:
        if answer is None:
            return []
        if not isinstance(answer, Iterable):
            raise AnswerError(f"answered {_short(answer)}; should be {name} objects")
        given = list(answer)
        for item in given:
            if not isinstance(item, kind):
                raise AnswerError(f"gave {_short(item)} among its answers; should be {name} objects")
        return given

    return check


def _short(answer: Any) -> str:
    try:
        text = " ".join(repr(answer).split())
    except Exception:  # noqa: BLE001 - a plugin's object need not be able to say what it is
        text = f"<{type(answer).__name__}>"
    return text if len(text) <= 60 else f"{text[:59]}…"


_OF_OBJECTS = {"collect_stats", "diagnose", "marking_strategies", "cleanup"}
_CHECKS: Mapping[str, Callable[[Arguments, Any], Any]] = {
    "on_new_flow": _reasons,
    "allocate_mark": _marks,
    "publish_marks": _published,
    "install_offload": partial(_outcomes, _OF_INSTALLATION),
    "remove_offload": partial(_outcomes, _OF_REMOVAL),
    "dump_offload": _rows,
    "probe_offload": _capabilities,
    "collect_stats": _each_is(MetricFamily, "nfcore.api.metrics.MetricFamily"),
    "config_section": _section,
    "diagnose": _each_is(Finding, "nfcore.api.findings.Finding"),
    "marking_strategies": _each_is(StrategyInfo, "nfcore.api.marks.StrategyInfo"),
}
