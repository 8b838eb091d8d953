"""`--redact`: what it hides, and that hostile text does not delay it."""

from __future__ import annotations

import pytest

pytest.importorskip("click", reason="the command line is an extra")

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
    ],
)
def test_a_value_is_hidden_in_all_forms_of_text(text, redacted):
    assert PASSWORD.text(text) == redacted
