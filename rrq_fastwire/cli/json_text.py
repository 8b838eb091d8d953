"""Split and indent JSON as text, without changing how its values are written."""

from __future__ import annotations

import json
import re

_space = re.compile(r"[ \t\n\r]*")
_token = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}:,]|[^][{}:,"\s]+')

# Used only to find where a value ends, so numbers are not converted.
_value_at = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).raw_decode


def members(document: str) -> dict[str, str]:
    """Return the members of a JSON object, each value as it is written.

    Raises ValueError if the document is not a JSON object.
    """
    found: dict[str, str] = {}
    at = _skip(document, 0)
    if document[at : at + 1] != "{":
        raise ValueError("not a JSON object")
    at = _skip(document, at + 1)
    while document[at : at + 1] != "}":
        if document[at : at + 1] != '"':
            raise ValueError(f"expected a key at character {at}")
        key, at = _value_at(document, at)
        at = _skip(document, at)
        if document[at : at + 1] != ":":
            raise ValueError(f"expected a colon at character {at}")
        start = _skip(document, at + 1)
        _, at = _value_at(document, start)
        found[key] = document[start:at]
        at = _skip(document, at)
        if document[at : at + 1] == ",":
            at = _skip(document, at + 1)
        elif document[at : at + 1] != "}":
            raise ValueError(f"expected a comma or the end of the object at character {at}")
    if document[at + 1 :].strip(" \t\n\r"):
        raise ValueError(f"unexpected text after the object, at character {at + 1}")
    return found


def _skip(document: str, at: int) -> int:
    found = _space.match(document, at)
    return found.end() if found else at


def on_one_line(document: str) -> str:
    """Return JSON without line breaks, which can occur only between its tokens."""
    return document.replace("\r", " ").replace("\n", " ")


def tokens(document: str) -> list[str]:
    """Return the brackets, commas, colons, strings and other values of JSON."""
    return _token.findall(document)


def indented(document: str, indent: str = "  ") -> str:
    """Return JSON with a line for each member, whose value stays as it is written."""
    parts: list[str] = []
    depth = 0
    found = tokens(document)
    for token, follows in zip(found, [*found[1:], ""], strict=True):
        parts.append(token)
        if token in ("{", "["):
            depth += 1
            if follows not in ("}", "]"):
                parts.append("\n" + indent * depth)
        elif token == ",":
            parts.append("\n" + indent * depth)
        elif token == ":":
            parts.append(" ")
        if follows in ("}", "]"):
            depth -= 1
            if token not in ("{", "["):
                parts.append("\n" + indent * depth)
    return "".join(parts)
