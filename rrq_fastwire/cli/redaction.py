"""`--redact`: hide the values of some keys in what is printed."""

from __future__ import annotations

import json
import re
from functools import cached_property

import click

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_HIDDEN = "***"


class Redaction:
    """The keys whose values are hidden.

    A value is hidden at any depth, in JSON that stands inside a string, and in text such as
    `card=4111` or `{'card': '4111'}`.
    """

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        self.keys = keys

    def __bool__(self) -> bool:
        return bool(self.keys)

    def document(self, document: str) -> str:
        """Return JSON as it stands if there are no keys; else written anew, without their values.

        Raises RecursionError if it is nested too deep for the json module.
        """
        return _compact(self._value(json.loads(document))) if self.keys else document

    def text(self, text: str) -> str:
        """Return text without the values of the keys, as far as they can be recognised in it."""
        if not self.keys:
            return text
        if text.lstrip()[:1] in ("{", "["):
            try:
                value = json.loads(text)
            except ValueError:
                pass
            else:
                return _compact(self._value(value))
        return self._pattern.sub(rf"\1{_HIDDEN}", text)

    def _value(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: _HIDDEN if key in self.keys else self._value(item)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        keys = "|".join(re.escape(key) for key in sorted(self.keys, key=len, reverse=True))
        # A key that is no part of a longer word, in quotes or not; and a value in quotes, in
        # brackets, or up to what usually ends one.
        quote = r"""(?:\\*["'])?"""
        value = r"""\\*"(?:[^"\\]|\\.)*"|\\*'(?:[^'\\]|\\.)*'|\{[^{}]*\}|\[[^][]*\]|[^\s,;&)}\]]+"""
        return re.compile(rf"((?<![\w-]){quote}(?:{keys}){quote}\s*[:=]\s*)(?:{value})")


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def redact_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--redact KEY,...`, which gives the command a Redaction."""
    return click.option(
        "--redact",
        metavar="KEY,...",
        default="",
        callback=_split_keys,
        help="Hide the values of these keys, in strings as well.",
    )(command)


def _split_keys(_context: click.Context, _option: click.Parameter, text: str) -> Redaction:
    return Redaction(frozenset(filter(None, text.split(","))))
