# SPDX-License-Identifier: Apache-2.0
"""Checks the results of hooks before anything relies on them.

A wrong result is a fault of the plugin (`nfcore.hooks.manager`), and is not used.
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
from ..api.network_function import PacketTrace
from ..api.rules import INSTALLED_ROW, Capabilities, Outcome, Outcomes

Arguments = Mapping[str, Any]
_WIDEST_MARK = 32
"""Bits."""
_LAST_PROTOCOL = 255
MAX_OBJECTS = 10_000
"""Objects that a hook may return: a generator without end must not use up all memory."""
_OF_INSTALLATION = (Outcome.INSTALLED, Outcome.FULL, Outcome.UNSUPPORTED, Outcome.FAILED)
_OF_REMOVAL = (Outcome.REMOVED, Outcome.ABSENT, Outcome.UNSUPPORTED, Outcome.FAILED)


class ResultError(Exception):
    """A wrong result; the message gives the result and what it should be."""


def check_result(hook: str, arguments: Arguments, result: Any) -> Any:
    """Give the result of a hook in its normal form, checked. ResultError when it is wrong."""
    check = _CHECKS.get(hook)
    return result if check is None else check(arguments, result)


def read_all(hook: str, result: Any) -> Any:
    """Read a result that is an iterator to its end, so that the code of a generator runs within the hook's call.

    ResultError when it gives more than MAX_OBJECTS objects.
    """
    if hook not in _OF_OBJECTS or isinstance(result, list | tuple | str) or not isinstance(result, Iterable):
        return result
    objects = list(islice(result, MAX_OBJECTS + 1))
    if len(objects) > MAX_OBJECTS:
        raise ResultError(f"returned more than {MAX_OBJECTS:,} objects, {_short(objects[-1])} among them; should end")
    return objects


def _per_flow(arguments: Arguments, result: Any, kinds: str, wanted: str, dtype: type[np.generic]) -> NDArray[Any]:
    """Check an array of shape (flows,) whose dtype is of one of these kinds; `dtype` is what is right."""
    length = len(arguments["batch"])
    wanted = f"should be an array of {length} {wanted}, one per flow, of dtype {dtype.__name__.rstrip('_')}"
    if not isinstance(result, np.ndarray):
        raise ResultError(f"returned {_short(result)}; {wanted}")
    if result.shape != (length,):
        raise ResultError(f"returned an array of shape {result.shape}; {wanted}")
    if result.dtype.kind not in kinds:
        raise ResultError(f"returned an array of {result.dtype}; {wanted}")
    return result


def _numbers(dtype: type[np.unsignedinteger[Any]], wanted: str, arguments: Arguments, result: Any) -> Any:
    if result is None:
        return None
    numbers, limit = _per_flow(arguments, result, "iu", wanted, dtype), int(np.iinfo(dtype).max)
    if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) > limit):
        wrong = numbers[(numbers < 0) | (numbers > limit)][0]
        raise ResultError(f"returned {wrong} for a flow; should be {wanted} from 0 to {limit}")
    return numbers.astype(dtype)


def _published(arguments: Arguments, result: Any) -> Any:
    return _per_flow(arguments, result, "b", "truth values", np.bool_)


def _outcomes(allowed: Sequence[Outcome], arguments: Arguments, result: Any) -> Any:
    rules = arguments["rules"]
    wanted = f"should be Outcomes with a status for each of {len(rules)} rules, an array of dtype uint8"
    if not isinstance(result, Outcomes):
        raise ResultError(f"returned {_short(result)}; {wanted}")
    if np.shape(result.status) != (len(rules),):
        raise ResultError(f"returned statuses of shape {np.shape(result.status)}; {wanted}")
    status = np.asarray(result.status)
    known = np.isin(status, allowed) if status.dtype.kind in "iu" else np.zeros(len(rules), dtype=bool)
    if not known.all():
        names = ", ".join(outcome.name for outcome in allowed)
        what = _short(status[~known][0]) + ("" if status.dtype.kind in "iu" else f" of dtype {status.dtype}")
        raise ResultError(
            f"returned {what} for a rule; should be a status of nfcore.api.rules.Outcome, of dtype uint8: {names}"
        )
    messages = result.messages
    if not isinstance(messages, Mapping) or not all(isinstance(text, str) for text in messages.values()):
        raise ResultError(f"returned the messages {_short(messages)}; should be a dict from a rule's number to a text")
    counted = result.counted
    is_counts = isinstance(counted, np.ndarray) and counted.shape == (len(rules), 2) and counted.dtype.kind in "iu"
    if counted is not None and not is_counts:
        what = f"an array of {counted.dtype}, shape {counted.shape}" if isinstance(counted, np.ndarray) else None
        raise ResultError(
            f"returned counted = {what or _short(counted)}; should be integers of shape ({len(rules)}, 2), or None, "
            "of dtype uint64: packets and bytes of each rule"
        )
    return result


def _rows(arguments: Arguments, result: Any) -> Any:
    if result is not None and not (isinstance(result, np.ndarray) and result.dtype == INSTALLED_ROW):
        what = f"an array of {result.dtype}" if isinstance(result, np.ndarray) else _short(result)
        raise ResultError(f"returned {what}; should be rows of nfcore.api.rules.INSTALLED_ROW: an array of that dtype")
    return result


def _targets(arguments: Arguments, result: Any) -> Any:
    if result is None:
        return None
    wanted = "should be an array of the targets that are gone, of dtype uint64, or None"
    if not isinstance(result, np.ndarray):
        raise ResultError(f"returned {_short(result)}; {wanted}")
    if result.ndim != 1 or result.dtype.kind not in "iu" or (result.dtype.kind == "i" and (result < 0).any()):
        raise ResultError(f"returned an array of {result.dtype}, shape {result.shape}; {wanted}")
    return result.astype(np.uint64)


def _traced(arguments: Arguments, result: Any) -> Any:
    if result is None:
        return None
    if not isinstance(result, PacketTrace):
        raise ResultError(f"returned {_short(result)}; should be nfcore.api.network_function.PacketTrace, or None")
    text = ((str,), "a text")
    optional = ((str, type(None)), "a text, or None")
    wanted: dict[str, tuple[tuple[type, ...], str]] = {
        "verdict": text,
        "output": ((bytes,), "bytes: the frame afterwards"),
        "path": text,
        "vip": optional,
        "real": optional,
        "why": text,
        "passed_on": ((bool,), "True or False"),
        "target": ((int, np.integer, type(None)), "a number, or None"),
    }
    for name, (kinds, what) in wanted.items():
        if not isinstance(value := getattr(result, name), kinds):
            raise ResultError(f"returned {name} = {_short(value)}; should be {what}")
    if result.path not in ("fast", "slow", "none"):
        raise ResultError(f"returned path = {result.path!r}; should be 'fast', 'slow' or 'none'")
    return result


def _capabilities(arguments: Arguments, result: Any) -> Any:
    if result is None:
        return None
    if not isinstance(result, Capabilities):
        raise ResultError(f"returned {_short(result)}; should be nfcore.api.rules.Capabilities")
    width, size, notes = result.mark_width, result.table_size, result.notes
    kinds = ("ipv6", "drop", "masks", "counters", "temporary")
    wrong = [name for name in kinds if not isinstance(getattr(result, name), bool)]
    if wrong:
        raise ResultError(f"returned {wrong[0]} = {_short(getattr(result, wrong[0]))}; should be True or False")
    if not _is_number(width) or not 0 <= width <= _WIDEST_MARK:
        raise ResultError(f"returned mark_width = {_short(width)}; should be a number of bits from 0 to {_WIDEST_MARK}")
    if size is not None and (not _is_number(size) or size < 0):
        raise ResultError(f"returned table_size = {_short(size)}; should be a number of rules, or None")
    protocols = result.protocols
    if protocols is not None and not (
        isinstance(protocols, tuple | list | frozenset | set)
        and all(_is_number(number) and 0 <= number <= _LAST_PROTOCOL for number in protocols)
    ):
        raise ResultError(
            f"returned protocols = {_short(protocols)}; should be a tuple of IP protocols' numbers, as (6, 17), or None"
        )
    if not isinstance(notes, tuple | list) or not all(isinstance(note, str) for note in notes):
        raise ResultError(f"returned notes = {_short(notes)}; should be a tuple of texts")
    return result


def _is_number(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _section(arguments: Arguments, result: Any) -> Any:
    if result is None:
        return None
    is_section = isinstance(result, Section) and isinstance(result.model, type)
    if not is_section or not issubclass(result.model, ConfigTable):
        raise ResultError(
            f"returned {_short(result)}; should be a nfcore.api.config.Section of a nfcore.api.config.ConfigTable"
        )
    return result


def _objects(kind: type) -> Callable[[Arguments, Any], Any]:
    name = "texts" if kind is str else f"{kind.__module__}.{kind.__name__} objects"

    def check(arguments: Arguments, result: Any) -> Sequence[Any]:
        if result is None:
            return []
        if not isinstance(result, Iterable) or isinstance(result, str):
            raise ResultError(f"returned {_short(result)}; should be {name}")
        objects = list(result)
        for item in objects:
            if not isinstance(item, kind):
                raise ResultError(f"returned {_short(item)} among others; should be {name}")
        return objects

    return check


def _short(result: Any) -> str:
    try:
        text = " ".join(repr(result).split())
    except Exception:  # noqa: BLE001 - repr() of a plugin's object may raise
        text = f"<{type(result).__name__}>"
    return text if len(text) <= 60 else f"{text[:59]}…"


_OF_OBJECTS = {"collect_stats", "diagnose", "preconditions", "marking_strategies", "cleanup"}
"""Hooks that may be generators."""
_CHECKS: Mapping[str, Callable[[Arguments, Any], Any]] = {
    "on_new_flow": partial(_numbers, np.uint8, "reasons"),
    "allocate_mark": partial(_numbers, np.uint32, "marks"),
    "publish_marks": _published,
    "install_offload": partial(_outcomes, _OF_INSTALLATION),
    "remove_offload": partial(_outcomes, _OF_REMOVAL),
    "dump_offload": _rows,
    "probe_offload": _capabilities,
    "collect_stats": _objects(MetricFamily),
    "config_section": _section,
    "diagnose": _objects(Finding),
    "preconditions": _objects(Finding),
    "marking_strategies": _objects(StrategyInfo),
    "reconfigure": _targets,
    "cleanup": _objects(str),
    "trace_packet": _traced,
}
