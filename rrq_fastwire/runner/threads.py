"""Run blocking handlers in threads, so that they do not block the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue

from ..errors import describe
from .arguments import check_count
from .log import log
from .process import exit_forked_child

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["ThreadPool"]


class ThreadPool:
    """Run functions in at most `size` threads, which are started when they are needed.

    They are daemon threads, so that they do not delay the end of the process. A ThreadPoolExecutor
    has none: the interpreter waits for its threads. A function that continues after its job was
    answered keeps its thread.
    """

    def __init__(self, size: int) -> None:
        check_count("threads", size)
        self._size = size
        self._pid = os.getpid()
        self._places = asyncio.Semaphore(size)
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # Only the event loop's thread changes these two.
        self._started = 0
        self._busy = 0

    async def run(self, function: Callable[[Any], Any], request: Any) -> Any:
        """Call a function with a request in a thread, in a copy of this context.

        If cancelled, this does not wait for the function.
        """
        # Read here, because the request belongs to the thread from now on.
        job_id, name = request.job_id, request.function_name
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
        context = copy_context()

        def call() -> None:
            result = error = None
            try:
                result = context.run(function, request)
            except BaseException as raised:
                exit_forked_child(raised, self._pid)
                error = raised
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._end, ended, result, error, job_id, name)
            # The traceback refers to this frame. The cycle would keep what the function has used.
            del error

        try:
            if self._busy == self._started:
                self._start_thread()
        except BaseException:
            self._places.release()
            raise
        self._busy += 1
        self._calls.put(call)
        try:
            result, error = await ended
        except asyncio.CancelledError:
            log(
                logging.WARNING,
                "job %s: %s keeps running in its thread, which cannot be cancelled; busy threads:"
                " %d of %d",
                describe(job_id),
                describe(name),
                self._busy,
                self._size,
            )
            raise
        if error is not None:
            try:
                raise error
            finally:
                del error, ended
        # A function that is not async may return a coroutine.
        return await result if hasattr(type(result), "__await__") else result

    def _start_thread(self) -> None:
        number = self._started + 1
        name = f"rrq-fastwire-handler-{number}"
        threading.Thread(target=self._work, name=name, daemon=True).start()
        self._started = number

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # it refers to the request, which is not needed while this waits

    def _end(
        self,
        ended: asyncio.Future[tuple[Any, BaseException | None]],
        result: Any,
        error: BaseException | None,
        job_id: str,
        name: str,
    ) -> None:
        """Pass on how a function has ended, and let the next one start."""
        self._busy -= 1
        self._places.release()
        if not ended.done():
            ended.set_result((result, error))
        elif error is not None:
            text = "job %s: %s raised an exception after its job was answered:"
            log(logging.ERROR, text, describe(job_id), describe(name), error=error)

    def stop(self) -> None:
        """End each thread once its function has ended. No function is called after this."""
        for _ in range(self._started):
            self._calls.put(None)
