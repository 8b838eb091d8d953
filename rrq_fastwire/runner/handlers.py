"""Find the handlers of jobs, and wrap them as the runner's options demand."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial

from ..errors import type_name
from .arguments import check_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any, TypeAlias

    from rrq.registry import Registry

    AsyncHandler: TypeAlias = Callable[[Any], Awaitable[Any]]
    Handler: TypeAlias = AsyncHandler | Callable[[Any], Any]
    Handlers: TypeAlias = Mapping[str, Handler] | Registry
    Middleware: TypeAlias = Callable[[Any, AsyncHandler], Awaitable[Any]]
    Find: TypeAlias = Callable[[str], AsyncHandler | None]

__all__ = ["HandlerFinder"]


class HandlerFinder:
    """Find the handler of a function by its name.

    Without options, `find` is the method of the mapping or registry itself, which adds no cost.

    Arguments: those of serve().

    Attributes:
        names: the names of the functions that were registered when this object was created.
        find: the function that returns the handler of a name, or None if there is none.
    """

    def __init__(
        self,
        handlers: Handlers,
        *,
        threads: int | None = None,
        slow_callback: float | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._stops: list[Callable[[], None]] = []
        find: Find
        if isinstance(handlers, Mapping):
            find, self.names = handlers.get, list(handlers)
        elif not hasattr(handlers, "get_handler"):
            raise TypeError(
                "handlers must be a mapping of names to async functions, or an"
                f" rrq.registry.Registry, got {type_name(handlers)}"
            )
        else:
            find, self.names = handlers.get_handler, handlers.get_registered_functions()
        for name in self.names:
            check_text("the name of a handler", name)
            handler = find(name)
            if not callable(handler):
                raise TypeError(f"the handler {name!r} is not callable")
            if threads is None and is_not_async(handler):
                raise TypeError(
                    f"the handler {name!r} is not async: define it with async def, or run it in a"
                    " thread with --threads (threads= of serve())"
                )
        if threads is not None:
            from .threads import ThreadPool

            pool = ThreadPool(threads)
            self._stops.append(pool.stop)
            find = _in_threads(pool.run, find)
        if not isinstance(middleware, Sequence):
            raise TypeError(
                f"middleware must be a sequence of async functions, got {type_name(middleware)}"
            )
        for each in reversed(middleware):
            if is_not_async(each):
                name = getattr(each, "__name__", each)
                raise TypeError(f"the middleware {name!r} is not async: define it with async def")
            find = _in_middleware(each, find)
        if slow_callback is not None:
            from .slow import SlowHandlers

            watch = SlowHandlers(slow_callback)
            self._stops.append(watch.stop)
            find = watch.wrap(find)
        self.find = find

    def stop(self) -> None:
        """End the threads that the options have started; a busy one ends after its handler."""
        for stop in self._stops:
            stop()


def _in_threads(run: Callable[[Handler, Any], Awaitable[Any]], find: Find) -> Find:
    """Return a `find` that replaces handlers that are not async with calls of `run`."""
    known: dict[str, tuple[Handler, AsyncHandler]] = {}

    def found(name: str) -> AsyncHandler | None:
        handler = find(name)
        if handler is None:
            return None
        pair = known.get(name)
        if pair is None or pair[0] is not handler:  # a registry can replace handlers
            pair = handler, partial(run, handler) if is_not_async(handler) else handler
            known[name] = pair
        return pair[1]

    return found


def _in_middleware(middleware: Middleware, find: Find) -> Find:
    """Return a `find` that replaces handlers with calls of a middleware."""

    def found(name: str) -> AsyncHandler | None:
        handler = find(name)
        return None if handler is None else partial(_call, middleware, handler)

    return found


def _call(middleware: Middleware, handler: AsyncHandler, request: Any) -> Awaitable[Any]:
    return middleware(request, handler)


def is_not_async(handler: object) -> bool:
    """Return whether a call of `handler` certainly cannot be awaited.

    Callable objects and compiled functions may be async, so the answer for them is False.
    """
    while not inspect.iscoroutinefunction(handler):
        if isinstance(handler, partial):
            handler = handler.func
        elif inspect.ismethod(handler):
            handler = handler.__func__
        elif inspect.isfunction(handler) and hasattr(handler, "__wrapped__"):
            handler = inspect.unwrap(handler, stop=_ends_unwrapping)
        else:
            return inspect.isfunction(handler) or not callable(handler)
    return False


def _ends_unwrapping(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or not inspect.isfunction(function)
