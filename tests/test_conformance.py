"""Decoding agrees with RRQ's own parser, on the frames and verdicts in the data of --conformance."""

from __future__ import annotations

import inspect
import json
import math
import re
from datetime import datetime, timezone

import pytest

from rrq_fastwire import FastwireError, MessageError

# Deliberate differences, see docs/reference/encoding.md: groups of frames that only RRQ's parser
# accepts, and groups and single frames that may also be accepted here.
REFUSED_HERE = {"sequence_form"}
TAKEN_HERE = {"depth", "duplicate_keys"}
TAKEN_HERE_BY_NAME = {"type_twice_around_payload", "context.attempt=neg_zero"}

RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def is_moment(text):
    """Whether a date-time has RFC 3339's form, and is in the years 0001 to 9999 in UTC."""
    try:
        return bool(RFC_3339.fullmatch(text) and moment(text.upper()))
    except (ValueError, OverflowError):
        return False


def has_foreign_date_time(frame):
    """Whether a frame has a date-time that only RRQ's parser accepts."""
    try:
        context = json.loads(frame[4:])["payload"]["context"]
        return not all(
            is_moment(context[key] or "0001-01-01T00:00:00Z")
            for key in ("deadline", "enqueue_time")
        )
    except (KeyError, TypeError, ValueError):
        return False


def pytest_generate_tests(metafunc):
    folder = metafunc.config.getoption("--conformance")
    for fixture in ("case", "verdict"):
        if fixture in metafunc.fixturenames:
            name = {"case": "frames.json", "verdict": "verdicts.json"}[fixture]
            cases = json.loads((folder / name).read_text()) if folder else []
            ids = [f"{case.get('group', case.get('type'))}-{case['name']!a}" for case in cases]
            if not folder:
                reason = "needs --conformance DIR, the reference's data"
                cases = [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
            metafunc.parametrize(fixture, cases, ids=ids or None)


def moment(text):
    """A date-time of RRQ's parser in UTC, without its nanoseconds, which a datetime cannot hold."""
    return datetime.fromisoformat(text).astimezone(timezone.utc)


def assert_same(mine, reference):
    """Checks that a decoded value is the same as that of RRQ's parser, which is given as JSON."""
    if isinstance(reference, float) or isinstance(mine, float):
        assert abs(mine - reference) <= 2 * math.ulp(reference)
    elif isinstance(mine, datetime):
        assert mine == moment(reference)
    elif isinstance(reference, dict):
        attributes = (
            mine
            if isinstance(mine, dict)
            else {name: getattr(mine, name) for name in inspect.signature(type(mine)).parameters}
        )
        for name, value in attributes.items():
            assert_same(value, reference.get(name))
        assert set(reference) <= set(attributes)
    elif isinstance(reference, list):
        assert len(mine) == len(reference)
        for item, other in zip(mine, reference, strict=True):
            assert_same(item, other)
    else:
        assert mine == reference
        assert (type(mine) is bool) == (type(reference) is bool)


def test_a_frame_of_the_reference_decodes_to_the_same_values(wire, case):
    frame = bytes.fromhex(case["frame_hex"])
    if has_foreign_date_time(frame):
        with pytest.raises(MessageError, match="expected a date-time"):
            wire.decode_frame(frame)
        return
    message = wire.decode_frame(frame)
    if case["decoded"] is not None:
        assert_same(message, case["decoded"]["payload"])
        assert wire.decode_frame(wire.encode_frame(message)) == message


def test_an_odd_frame_gets_the_verdict_of_the_reference(wire, verdict):
    frame = bytes.fromhex(verdict["frame_hex"])
    accepted = verdict["accepted"]
    if accepted and (verdict["group"] in REFUSED_HERE or has_foreign_date_time(frame)):
        accepted = False
    elif verdict["group"] in TAKEN_HERE or verdict["name"] in TAKEN_HERE_BY_NAME:
        # May be accepted or, if the JSON itself is invalid, refused with a documented error.
        accepted = accepted or None
    try:
        message = wire.decode_frame(frame)
    except FastwireError:
        assert not accepted
    else:
        assert accepted is not False
        if accepted:
            assert_same(message, verdict["decoded"]["payload"])
