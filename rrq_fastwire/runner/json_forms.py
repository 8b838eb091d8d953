"""JSON forms of values such as datetimes and sets, for use without rrq.

They are the forms of pydantic's JSON mode, which rrq uses for results. This module is imported when
the first result needs it.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from itertools import islice
from pathlib import PurePath
from typing import Any
from uuid import UUID

from .. import MAX_NESTING, ExecutionOutcome
from .._json import MAX_ITEMS

__all__ = ["convert_values"]

_ARRAYS = (list, tuple, set, frozenset, deque, Iterator)
_TEXTS = (
    Decimal,
    Fraction,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    PurePath,
    UUID,
)


def convert_values(outcome: ExecutionOutcome) -> None:
    """Convert the values in an outcome to JSON's types, as far as a form is known."""
    outcome.result = _json_form(outcome.result, MAX_NESTING)
    if outcome.error is not None:
        outcome.error.details = _json_form(outcome.error.details, MAX_NESTING)


def _json_form(value: Any, levels: int) -> Any:
    """Convert a value to JSON's types. A value without a form stays, and encoding then names it.

    Arguments:
        levels: how many more levels of containers to convert. Deeper values stay, and encoding
            refuses them.
    """
    if levels == 0:
        return value
    if isinstance(value, Enum):
        return _json_form(value.value, levels - 1)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    text = _text(value)
    if text is not None:
        return text
    if isinstance(value, dict):
        return {_key(key): _json_form(item, levels - 1) for key, item in value.items()}
    if isinstance(value, _ARRAYS):
        # An iterator may be endless. It is cut one item over the limit, which encoding rejects.
        return [_json_form(item, levels - 1) for item in islice(value, MAX_ITEMS + 1)]
    if callable(getattr(type(value), "model_dump", None)):  # a pydantic model
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {field.name: _json_form(getattr(value, field.name), levels - 1) for field in fields}
    return value


def _text(value: Any) -> str | None:
    """Return the text that stands for a value; None if there is none."""
    if isinstance(value, (datetime, time)):
        return re.sub(r"\+00:00$", "Z", value.isoformat())
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, _TEXTS):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    if isinstance(value, complex):
        return str(value).strip("()")
    return str(value.pattern) if isinstance(value, re.Pattern) else None


def _duration(value: timedelta) -> str:
    """Write an ISO 8601 duration, in which a year has 365 days."""
    sign, value = ("-", -value) if value < timedelta(0) else ("", value)
    years, days = divmod(value.days, 365)
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{value.microseconds:06}".rstrip("0").rstrip(".")
    in_days = "".join(f"{count}{unit}" for count, unit in ((years, "Y"), (days, "D")) if count)
    in_hours = "".join(f"{count}{unit}" for count, unit in ((hours, "H"), (minutes, "M")) if count)
    if seconds or fraction or not (in_days or in_hours):
        in_hours += f"{seconds}{fraction}S"
    return f"{sign}P{in_days}T{in_hours}" if in_hours else f"{sign}P{in_days}"


def _key(key: Any) -> Any:
    """Convert a key to text. A key without a form stays, and encoding then names its type."""
    if isinstance(key, Enum):
        return _key(key.value)
    if isinstance(key, bool):
        return str(key).lower()
    if key is None or isinstance(key, (int, float)):
        return str(key)
    if isinstance(key, tuple):
        return ",".join(str(_key(item)) for item in key)
    return key if isinstance(key, str) else _text(key) or key
