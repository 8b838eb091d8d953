"""`--redact`: what it hides, and that hostile text does not delay it."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from .in_process import run_text

pytest.importorskip("click", reason="the command line is an extra")
pytest.importorskip("rich", reason="the command line is an extra")

from rrq_fastwire import (
    CancelRequest,
    ExecutionContext,
    ExecutionOutcome,
    ExecutionRequest,
    encode_frame,
    pack_frame,
)
from rrq_fastwire.cli.redaction import Redaction

PASSWORD = Redaction(frozenset({"password"}))


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 10**6,
        "password" + "\\" * 10**6,
        "password=" + "\\" * 10**6,
        "password=\\' " * 10**5,
        "password=' \\" * 10**5,
        "password={ " * 10**5,
        "password=bearer" + " " * 10**6,
    ],
    ids=lambda text: text[:12],
)
def test_a_long_run_of_quotes_or_backslashes_is_searched_once(text):
    """If it were searched again from each character, this would take hours."""
    assert len(PASSWORD.text(text)) <= len(text)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("run --password=SECRET --fine=1", "run --password=*** --fine=1"),
        ("-password=SECRET", "-password=***"),
        ("my-password=fine", "my-password=fine"),
        ('password="a \\" SECRET" fine', "password=*** fine"),
        ('\\"password\\": \\"a SECRET\\", fine', '\\"password\\": ***, fine'),
        ('password=\\"a \\\\\\" SECRET\\" fine', "password=*** fine"),
        ('password="a SECRET', "password=***"),
        ('password="a SECRET\\', "password=***"),
        ("password: Bearer SECRET, fine", "password: ***, fine"),
        ("password: basic  SECRET fine", "password: *** fine"),
        ("a line\\npassword=SECRET fine", "a line\\npassword=*** fine"),
        ("{'password': b'a SECRET', 'fine': 1}", "{'password': ***, 'fine': 1}"),
        ("{'password': ('a', 'SECRET'), 'fine': 1}", "{'password': ***, 'fine': 1}"),
        ("{'password': {'a': {'b': 1}, 'c': 'SECRET'}}", "{'password': ***"),
    ],
)
def test_values_in_these_forms_of_text_are_hidden(text, redacted):
    assert PASSWORD.text(text) == redacted


ID = "welcome:email=SECRET"
TIME = datetime(2026, 1, 1, tzinfo=timezone.utc)
MESSAGES = {
    "request": encode_frame(
        ExecutionRequest(
            protocol_version="2",
            request_id=ID,
            job_id=ID,
            function_name=ID,
            params={},
            context=ExecutionContext(job_id=ID, attempt=1, enqueue_time=TIME, queue_name=ID),
        )
    ),
    "outcome": encode_frame(ExecutionOutcome.failure(ID, ID, "no", type=ID, code=ID)),
    "cancel": encode_frame(CancelRequest(job_id=ID, request_id=ID)),
    "invalid": pack_frame(
        b'{"type":"cancel","payload":{"job_id":"%s","request_id":7}}' % ID.encode()
    ),
}
KEYS = "request_id,job_id,function_name,queue_name,type,code"


@pytest.mark.parametrize("keys", [KEYS, "email"], ids=["fields", "values within the text"])
@pytest.mark.parametrize("arguments", [[], ["--verbose"], ["--json"]])
@pytest.mark.parametrize("name", MESSAGES)
def test_ids_and_names_of_a_message_are_hidden_wholly_or_in_part(tmp_path, name, arguments, keys):
    capture = tmp_path / "capture"
    capture.write_bytes(MESSAGES[name])
    status, printed, _ = run_text("decode", *arguments, "--redact", keys, str(capture))
    assert status == 0
    assert "SECRET" not in printed
    assert "***" in printed
    _, printed, _ = run_text("decode", *arguments, "--redact", "other", str(capture))
    assert ("SECRET" in printed) == (name != "invalid" or arguments != ["--json"])


@pytest.mark.parametrize(
    "options", [["card,password"], [" card, password ,"], ["card", "password"]]
)
def test_keys_can_be_separated_by_commas_and_spaces_or_given_one_by_one(tmp_path, options):
    capture = tmp_path / "capture"
    result = {"card": "SECRET", "password": "SECRET", "fine": 1}
    capture.write_bytes(encode_frame(ExecutionOutcome.success("j", "r", result)))
    redact = [f"--redact={option}" for option in options]
    status, printed, _ = run_text("decode", *redact, str(capture))
    assert status == 0
    assert '{"card":"***","password":"***","fine":1}' in printed
