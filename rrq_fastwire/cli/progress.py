"""A progress bar on stderr, shown only if stderr is a terminal."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import Progress, TextColumn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.progress import ProgressColumn


def default_columns() -> list[ProgressColumn]:
    """Return rich's columns, but names of tasks are not read as markup."""
    name = TextColumn("{task.description}", style="progress.description", markup=False)
    return [name, *Progress.get_default_columns()[1:]]


def progress_bar(*columns: ProgressColumn, transient: bool = True) -> Progress:
    """Return a progress bar that does not redirect sys.stdout.

    By default, rich sends everything that is printed during a progress bar to the bar's console. So
    output for a file or pipe would end up on the terminal.
    """
    return Progress(
        *(columns or default_columns()),
        console=Console(stderr=True),
        transient=transient,
        redirect_stdout=False,
        disable=not sys.stderr.isatty(),
    )
