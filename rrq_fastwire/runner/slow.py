"""Warn about handlers that block the event loop, with the line that blocks."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from functools import partial
from time import monotonic
from types import coroutine

from ..errors import describe
from .arguments import check_seconds
from .log import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Generator
    from types import FrameType
    from typing import Any

    from .handlers import AsyncHandler, Find

__all__ = ["SlowHandlers"]


class SlowHandlers:
    """Log a warning, once for each function, if a handler runs for too long without waiting.

    A second thread reads which line the handler is running. The event loop's own thread could
    notice a slow handler only afterwards.

    Arguments:
        seconds: how long a handler may block the event loop.
    """

    def __init__(self, seconds: float) -> None:
        check_seconds("slow_callback", seconds, allow_zero=False)
        self._seconds = seconds
        # The name of the function that runs, when its current step began, and the thread it is in.
        self._step: tuple[str, float, int] | None = None
        self._warned: dict[str, object] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="rrq-fastwire-slow", daemon=True).start()

    def wrap(self, find: Find) -> Find:
        """Return a `find` that replaces handlers with watched calls of them."""

        def found(name: str) -> AsyncHandler | None:
            handler = find(name)
            return None if handler is None else partial(self._watched, name, handler)

        return found

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()

    def _watched(self, name: str, handler: AsyncHandler, request: Any) -> Awaitable[Any]:
        return self._run(name, _awaiting(handler, request))

    @coroutine
    def _run(self, name: str, steps: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Run a coroutine, and time each of its steps from one wait to the next."""
        error: BaseException | None = None
        thread = threading.get_ident()
        while True:
            began = monotonic()
            self._step = name, began, thread
            try:
                waits_for = steps.send(None) if error is None else steps.throw(error)
            except StopIteration as end:
                return end.value
            finally:
                error = self._step = None
                if monotonic() - began > self._seconds:
                    self._warn(name, ": the line is not known")
            try:
                yield waits_for
            except BaseException as thrown:
                error = thrown

    def _watch(self) -> None:
        while not self._stopped.wait(self._seconds / 2):
            step = self._step
            if step is None:
                continue
            name, began, thread = step
            if name not in self._warned and monotonic() - began > self._seconds:
                stack = _stack_of_handler(sys._current_frames().get(thread))
                if self._step is step:  # else the stack may be that of a later step
                    self._warn(name, f", here:\n{stack}".rstrip("\n"))

    def _warn(self, name: str, place: str) -> None:
        mark = object()
        if self._warned.setdefault(name, mark) is mark:
            text = "%s has blocked the event loop for more than %g s, which delays other jobs%s"
            log(logging.WARNING, text, describe(name), self._seconds, place)


async def _awaiting(handler: AsyncHandler, request: Any) -> Any:
    return await handler(request)


def _stack_of_handler(frame: FrameType | None) -> str:
    """Format the handler's part of a stack, as in a traceback."""
    lines: list[tuple[FrameType, int]] = []
    while frame is not None and frame.f_code is not _awaiting.__code__:
        lines.append((frame, frame.f_lineno))
        frame = frame.f_back
    return "".join(traceback.StackSummary.extract(reversed(lines)).format())
