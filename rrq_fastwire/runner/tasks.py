"""Start each handler at once, under a task, so that one that does not wait is answered at once."""

from __future__ import annotations

import asyncio
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextvars import Context
    from typing import Any

__all__ = ["TaskStarter"]


# The event loop has to make the task if it has a task factory, or is patched by nest_asyncio. A
# handler can run a patched loop itself, which does not work within the callback of a read: the loop
# cannot call that callback again before it returns.

# Measured on CPython 3.13, for coroutines that do not wait and for those that wait once: an eager
# task takes 1.4 and 3.8 us, a task in reserve 1.3 and 3.9 to 6.5 us.
if sys.version_info >= (3, 12):

    class TaskStarter:
        """Start coroutines under asyncio's eager tasks."""

        def start(
            self, loop: asyncio.AbstractEventLoop, steps: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None] | None:
            """Run a coroutine up to its first wait, under a task, in its own copy of the context.

            Returns the task if the coroutine waits, else None. If the event loop has to make the
            task, the coroutine may not have begun. Do not call this from within a task.

            Arguments:
                loop: the running event loop. Looking it up is a system call on Python 3.11.
            """
            if loop.get_task_factory() is None and not hasattr(loop, "_nest_patched"):
                task = asyncio.Task(steps, loop=loop, name=name, eager_start=True)
            else:
                task = loop.create_task(steps, name=name)
            return None if task.done() else task

        def stop(self) -> None:
            """Do nothing: there is no task in reserve."""

else:
    from collections.abc import Coroutine
    from contextvars import copy_context
    from typing import Any, cast

    def _unlike_others(_: object) -> object:
        return object()

    # PyPy does not count references. There, each job gets a task of its own.
    _count_references = getattr(sys, "getrefcount", _unlike_others)

    class TaskStarter:
        """Start coroutines under a task in reserve, which takes over a coroutine that waits.

        This replaces eager tasks, which Python 3.11 does not have. The difference: coroutines that
        do not wait see the same task, one after another, until one of them keeps a reference to it
        or adds a callback to it. Weak references do not count.
        """

        def __init__(self) -> None:
            self._reserve: _Relay | None = None

        def start(
            self, loop: asyncio.AbstractEventLoop, steps: Coroutine[Any, Any, None], name: str
        ) -> asyncio.Task[None] | None:
            """Do what the method for Python 3.12 and later does, with the task in reserve."""
            if loop.get_task_factory() is not None or hasattr(loop, "_nest_patched"):
                task = loop.create_task(steps, name=name)
                return None if task.done() else task
            relay, self._reserve = self._reserve, None
            # A coroutine that did not wait may have cancelled the task.
            if relay is None or relay.idle.done() or relay.task._must_cancel:  # type: ignore[attr-defined]
                relay = _Relay(loop)
            task = relay.task
            task.set_name(name)
            context = copy_context()
            # asyncio documents these two functions for other implementations of tasks.
            asyncio._enter_task(loop, task)
            references = _count_references(task)
            try:
                waits_for = context.run(steps.send, None)
            except StopIteration:
                if _count_references(task) == references and not task._callbacks:
                    self._reserve = relay
                else:  # a reference or a callback is left, so the task must end now
                    relay.take_over(context, _nothing(), None)
                return None
            finally:
                asyncio._leave_task(loop, task)
            relay.take_over(context, steps, waits_for)
            self._reserve = _Relay(loop)
            return task

        def stop(self) -> None:
            """End the task in reserve."""
            if self._reserve is not None:
                self._reserve.task.cancel()

    async def _nothing() -> None:
        """End at once."""

    class _Relay:
        """The coroutine of a task in reserve: it waits, and then runs the rest of another one.

        Then it passes on the attributes of that coroutine, such as `cr_frame`, so that tools see
        where a handler waits.
        """

        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self.idle = loop.create_future()  # what the task waits for in reserve
            self._is_in_reserve = False  # whether it waits for that
            self._context: Context | None = None  # set by take_over(), with the next two
            self._steps: Any = None
            self._waits_for: Any = None
            self._is_told = False  # whether the task has got what the steps wait for
            self.task: asyncio.Task[None] = asyncio.Task(self, loop=loop)  # type: ignore[arg-type]

        def take_over(
            self, context: Context, steps: Coroutine[Any, Any, None], waits_for: object
        ) -> None:
            """Continue a coroutine, which has yielded what it waits for, in the next iteration."""
            self._context, self._steps, self._waits_for = context, steps, waits_for
            del self.task  # the task refers to this object, which would be a cycle
            if asyncio.isfuture(waits_for):
                waits_for._asyncio_future_blocking = False  # others may wait for it meanwhile
            if not self.idle.done():
                self.idle.set_result(None)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._steps, name)

        def send(self, value: None) -> object:
            if self._context is None:
                self._is_in_reserve = True
                return self._yield(self.idle)
            if not self._is_told:
                self._is_told = True
                # Drop the reference: a future refers to what it raises, and so to the handler's
                # frames.
                waits_for, self._waits_for = self._waits_for, None
                # None stands for the next iteration. If the task was in reserve, this is it. A new
                # task runs before other callbacks that the steps have asked for, so it waits.
                if waits_for is not None or not self._is_in_reserve:
                    return self._yield(waits_for)
            return self._context.run(self._steps.send, None)

        def throw(self, error: BaseException) -> object:
            if self._context is None:
                self.idle.cancel()  # start() must not use this task again
                raise error
            if not self._is_told:
                self._is_told = True
                waits_for, self._waits_for = self._waits_for, None
                if _accepts_cancellation(waits_for, error):
                    return self._yield(waits_for)
            return self._context.run(self._steps.throw, error)

        def _yield(self, value: Any) -> object:
            if asyncio.isfuture(value):
                value._asyncio_future_blocking = True  # as its __await__() does
            return value

    def _accepts_cancellation(waits_for: Any, error: BaseException) -> bool:
        """Cancel what the coroutine waits for, as its task would if the task knew it already.

        Returns whether the cancellation is accepted, so that waiting for it raises that later.
        """
        if not asyncio.isfuture(waits_for):
            return False
        try:
            return waits_for.cancel(*error.args)
        except Exception:  # raised by a future of another library
            return True

    # A task accepts only coroutines.
    cast(Any, Coroutine).register(_Relay)
