"""Import what the command line names, such as the settings, and explain failures."""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
from collections.abc import Mapping

from .stock import HAS_RRQ, rrq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from rrq.registry import Registry

    from .handlers import Handlers

__all__ = ["StartError", "details", "load", "load_handlers", "split_path"]


class StartError(Exception):
    """The runner cannot start. The text says what to do.

    Attributes:
        details: the traceback of what the user's code raised; empty if that code did not run.
    """

    def __init__(self, text: str, details: str = "") -> None:
        super().__init__(text)
        self.details = details


def split_path(path: str, option: str = "--settings") -> tuple[str, str]:
    """Split "module.attr" or "module:attr" into module and attribute.

    Arguments:
        option: the option that has the value, for the error.

    Raises ValueError if `path` has another form.
    """
    module_name, separator, attribute = path.partition(":")
    if not separator:
        module_name, separator, attribute = path.rpartition(".")
    if not (module_name and attribute) or module_name.startswith("."):
        raise ValueError(f"{option} must be module.attr or module:attr, got {path!r}")
    return module_name, attribute


def load(path: tuple[str, str], option: str) -> Any:
    """Import the attribute of a module that a command-line option names. Raises StartError."""
    module_name, attribute = path
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise StartError(_advice(error, module_name, attribute, option), details(error)) from error


def load_handlers(module_name: str, attribute: str) -> Handlers:
    """Import the handlers of a PythonRunnerSettings or a mapping. Raises StartError."""
    settings = load((module_name, attribute), "--settings")
    if HAS_RRQ and isinstance(settings, rrq.PythonRunnerSettings):
        registry: Registry = settings.registry
        return registry
    if isinstance(settings, Mapping):
        return settings
    raise StartError(
        f"{attribute!r} of {module_name!r} is of type {type(settings).__name__}: make it a"
        " PythonRunnerSettings or a mapping of names to async functions"
    )


def _advice(error: Exception, module_name: str, attribute: str, option: str) -> str:
    if _trimmed(error.__traceback__) is None:  # none of the user's code is at fault
        if isinstance(error, ModuleNotFoundError):
            return f"cannot import {module_name!r}: is its directory on PYTHONPATH?"
        if isinstance(error, AttributeError):
            return f"{module_name!r} has no {attribute!r}: correct {option}"
    return f"cannot import {module_name!r}: correct the error above"


def details(error: Exception) -> str:
    """Format an exception as Python does, without the frames that led to the user's code."""
    lines = traceback.format_exception(type(error), error, _trimmed(error.__traceback__))
    return "".join(lines)


def _trimmed(frames: TracebackType | None) -> TracebackType | None:
    while frames is not None and not _is_of_user(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return frames


def _is_of_user(filename: str) -> bool:
    led_to_it = (contextlib.__file__, importlib.__file__)
    ours = (os.path.dirname(__file__) + os.sep, "<frozen importlib.")
    return filename not in led_to_it and not filename.startswith(ours)
