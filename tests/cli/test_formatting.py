"""Times as the commands show them."""

from __future__ import annotations

import pytest

pytest.importorskip("rich", reason="the command line is an extra")

from rrq_fastwire.cli.formatting import duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 ms"),
        (0.0123, "12.3 ms"),
        (5, "5.0 s"),
        (11_103, "3 h 5 min"),
        (3e11, "3472222 d 5 h"),
        (1e308, "1e+308 s"),
        (-0.0123, "-12.3 ms"),
        (-5, "-5.0 s"),
        (-11_103, "-3 h 5 min"),
        (-1e308, "-1e+308 s"),
    ],
)
def test_a_time_of_any_size_and_sign_is_short(seconds, shown):
    assert duration(seconds) == shown
