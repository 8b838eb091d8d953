"""`--redact`: hide the values of some keys in what is printed."""

from __future__ import annotations

import json
import re
from functools import cached_property

import click

from .json_text import tokens

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

HIDDEN = "***"


class Redaction:
    """Hide the values of some keys.

    A value is hidden at any depth, in JSON within a string, and in text such as `card=4111` or
    `{'card': '4111'}`. In text, some values cannot be recognised. In `the card 4111`, nothing is
    hidden. Of a value without quotes, only the first word is hidden, and the word after `Basic`,
    `Bearer` or `Token`.
    """

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        self.keys = keys

    def __bool__(self) -> bool:
        return bool(self.keys)

    def field(self, name: str, text: str) -> str:
        """Return a field of a message as text: HIDDEN if its name is a key, else as text() does."""
        return HIDDEN if name in self.keys else self.text(text)

    def document(self, document: str) -> str:
        """Return JSON without the values of the keys. Everything else stays as it is written."""
        if not self.keys:
            return document
        parts: list[str] = []
        found = tokens(document)
        at = 0
        while at < len(found):
            token = found[at]
            at += 1
            if not token.startswith('"'):
                parts.append(token)
            elif found[at : at + 1] == [":"]:
                parts += token, ":"
                at += 1
                if json.loads(token) in self.keys:
                    parts.append(f'"{HIDDEN}"')
                    at = _after_value(found, at)
            else:
                text = json.loads(token)
                redacted = self.text(text)
                parts.append(
                    token if redacted == text else json.dumps(redacted, ensure_ascii=False)
                )
        return "".join(parts)

    def text(self, text: str) -> str:
        """Return text without the values of the keys, as far as they can be recognised in it."""
        if not self.keys:
            return text
        if text.lstrip()[:1] in ("{", "["):
            try:
                json.loads(text)
            except ValueError:
                pass  # not JSON, but maybe the repr of a dict
            except RecursionError:
                return HIDDEN  # nested too deep to search, and it may hold values to hide
            else:
                return self.document(text)
        return self._pattern.sub(rf"\1{HIDDEN}", text)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        keys = "|".join(re.escape(key) for key in sorted(self.keys, key=len, reverse=True))
        # A key that is not part of a longer word, or that follows an escaped line break or tab. The
        # pattern does not begin with the optional quote. Otherwise the search would start again at
        # each character of a long run of quotes or backslashes, in quadratic time.
        start = r"""(?:(?<!\w)(?<!\w-)|(?<=\\[nrt]))"""
        key = rf"""{start}(?:{keys})(?:\\*["'])?\s*[:=]\s*"""
        # A value in quotes, in brackets, or up to a character that usually ends a value. A value
        # that begins with an escaped quote ends at a quote with as many backslashes. If a closing
        # quote is missing, or brackets are nested, the rest of the text is hidden.
        value = (
            r"""b?"(?:[^"\\]|\\.?)*+(?:"|\Z)|b?'(?:[^'\\]|\\.?)*+(?:'|\Z)"""
            r"""|(?P<quote>\\+["']).*?(?:(?<!\\)(?P=quote)|\Z)"""
            r"""|\{[^{}]*\}|\[[^][]*\]|\([^()]*\)|[{[(].*"""
            r"""|(?:(?i:basic|bearer|token)\s+)?[^\s,;&)}\]]+"""
        )
        return re.compile(rf"({key})(?:{value})", re.DOTALL)


def _after_value(found: list[str], at: int) -> int:
    """Return the index after the value that begins at token `at`."""
    depth = 0
    while True:
        depth += (found[at] in ("{", "[")) - (found[at] in ("}", "]"))
        at += 1
        if depth == 0:
            return at


def redact_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--redact KEY,...`, which can be repeated and passes a Redaction to the command."""
    return click.option(
        "--redact",
        metavar="KEY,...",
        multiple=True,
        callback=_split_keys,
        help="Hide the values of these keys, which are case-sensitive. Can be repeated. Values"
        " within other text are hidden only if their form is recognised. The columns of times,"
        " attempts and statuses are always shown.",
    )(command)


def _split_keys(
    _context: click.Context, _option: click.Parameter, texts: tuple[str, ...]
) -> Redaction:
    keys = (key.strip() for text in texts for key in text.split(","))
    return Redaction(frozenset(filter(None, keys)))
