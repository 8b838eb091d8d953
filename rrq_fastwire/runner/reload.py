"""Notice changes in the source of the settings, with watchfiles. Imported only for `--reload`."""

from __future__ import annotations

import importlib.util
import os
import threading
from concurrent.futures import Future

from watchfiles import Change, DefaultFilter, watch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Watcher"]

# How often watchfiles yields without a change. It watches from its first yield on.
_TICK_MILLISECONDS = 50


class Watcher:
    """Watch the Python files of a folder. Create it before the settings are imported.

    Arguments:
        module_name: the module of the settings. The folder is that of its top-level package, or the
            current directory if that cannot be found.

    Attributes:
        changed: its result is the name of the first file that changes.
    """

    def __init__(self, module_name: str) -> None:
        self.changed: Future[str] = Future()
        changes = watch(
            _folder_of(module_name.partition(".")[0]),
            watch_filter=_PythonFiles(),
            rust_timeout=_TICK_MILLISECONDS,
            yield_on_timeout=True,
        )
        next(changes)
        threading.Thread(
            target=self._watch, args=(changes,), name="rrq-fastwire-reload", daemon=True
        ).start()

    def _watch(self, changes: Iterator[set[tuple[object, str]]]) -> None:
        changed = next(filter(None, changes))
        self.changed.set_result(sorted(path for _, path in changed)[0])


class _PythonFiles(DefaultFilter):
    """Accept Python files, and new folders that contain some.

    watchfiles reports only the folder if it was moved, or if its files were written before it was
    watched.
    """

    def __call__(self, change: Change, path: str) -> bool:
        return super().__call__(change, path) and (
            path.endswith(".py") or (change == Change.added and self._holds_python(path))
        )

    def _holds_python(self, folder: str) -> bool:
        # Not Path.rglob(), which raises OSError for what it cannot read on CPython 3.11.
        for _, folders, files in os.walk(folder):
            if any(name.endswith(".py") for name in files):
                return True
            folders[:] = [name for name in folders if name not in self.ignore_dirs]
        return False


def _folder_of(package: str) -> str:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    origin = None if spec is None else spec.origin
    return os.getcwd() if origin is None else os.path.dirname(os.path.abspath(origin))
