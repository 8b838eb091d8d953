"""A progress bar on stderr, shown only if that is a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import ProgressColumn


def progress_bar(*columns: ProgressColumn, transient: bool = True) -> Progress:
    """Return a bar that leaves sys.stdout alone.

    By default rich sends what is printed while the bar is shown to the bar's own console. Output
    that was redirected to a file or a pipe would then end up on the terminal.
    """
    return Progress(
        *(columns or Progress.get_default_columns()),
        console=Console(stderr=True),
        transient=transient,
        redirect_stdout=False,
        disable=not sys.stderr.isatty(),
    )
