"""The handlers that `--settings` names: imports the module, and explains what fails."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping

from .stock import HAS_RRQ, rrq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from rrq.registry import Registry

    from .engine import Handlers

__all__ = ["StartError", "load_handlers", "split_path"]


class StartError(Exception):
    """The runner cannot start. The text says what to do.

    Attributes:
        details: the traceback of what the settings' code raised; empty if it did not run.
    """

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


def split_path(path: str) -> tuple[str, str]:
    """The module and the attribute of "module.attr" or "module:attr".

    Raises ValueError if it has another form.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        module_name, separator, attribute = path.rpartition(".")
    if not (module_name and attribute) or module_name.startswith("."):
        raise ValueError(f"--settings must be module.attr or module:attr, got {path!r}")
    return module_name, attribute


def load_handlers(module_name: str, attribute: str) -> Handlers:
    """The handlers of an object in a module: a PythonRunnerSettings, or a mapping.

    Raises StartError.
    """
    try:
        settings = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise StartError(_advice(error, module_name, attribute), _details(error)) from error
    if HAS_RRQ and isinstance(settings, rrq.PythonRunnerSettings):
        registry: Registry = settings.registry
        return registry
    if isinstance(settings, Mapping):
        return settings
    raise StartError(
        f"{attribute!r} of {module_name!r} is of type {type(settings).__name__}: make it a"
        " PythonRunnerSettings or a mapping of names to async functions"
    )


def _advice(error: Exception, module_name: str, attribute: str) -> str:
    if _trimmed(error.__traceback__) is None:  # none of the user's code is at fault
        if isinstance(error, ModuleNotFoundError):
            return f"cannot import {module_name!r}: is its directory on PYTHONPATH?"
        if isinstance(error, AttributeError):
            return f"{module_name!r} has no {attribute!r}: correct --settings"
    return f"cannot import {module_name!r}: correct the error above"


def _details(error: Exception) -> str:
    """What Python would print of an exception, without the frames that led to the user's code."""
    lines = traceback.format_exception(type(error), error, _trimmed(error.__traceback__))
    return "".join(lines)


def _trimmed(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and _is_ours_or_importlibs(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _is_ours_or_importlibs(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib.")
