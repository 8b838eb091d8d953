"""Write what open files have buffered, before the process is replaced or ends."""

from __future__ import annotations

import gc
import io
from contextlib import suppress

__all__ = ["write_buffers"]

# The base of all files. Unlike io.IOBase, it is not an ABC, so issubclass() runs no Python code.
_FILE = io.IOBase.__mro__[1]

# Files whose flush() writes all that they have buffered. Others, such as GzipFile, must be closed.
_FLUSHED = (
    io.TextIOBase,
    io.RawIOBase,
    io.BytesIO,
    io.BufferedReader,
    io.BufferedWriter,
    io.BufferedRandom,
    io.BufferedRWPair,
)


def write_buffers() -> None:
    """Flush or close all files that the process has open. Call this last, because it closes some.

    Python closes a file that a module refers to when the garbage collector frees the module, which
    does not happen if the process is replaced, or its objects are frozen.
    """
    if hasattr(gc, "unfreeze"):  # not on PyPy
        gc.unfreeze()
    # Not isinstance(), because it reads `__class__`, which can be the object's own code.
    files = [each for each in gc.get_objects() if issubclass(type(each), _FILE)]
    # From the outside in: a text file writes to a compressed one, which writes to a buffer.
    flushed = [each for each in files if issubclass(type(each), _FLUSHED)]
    flushed.sort(key=lambda each: not issubclass(type(each), io.TextIOBase))
    for each in flushed:
        _flush(each)
    for each in files:
        if not issubclass(type(each), _FLUSHED):
            with suppress(BaseException):
                each.close()
    for each in flushed:  # the compressed files have written to these
        _flush(each)


def _flush(file: io.IOBase) -> None:
    with suppress(BaseException):  # it is closed, its device is full, or its own code raises
        file.flush()
