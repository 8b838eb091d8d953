"""The lifespan: a context manager entered before a runner listens, left after its last answer."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar

from .log import log
from .settings import StartError, details

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from contextvars import Token
    from typing import Any, TypeAlias

    Lifespan: TypeAlias = (
        AbstractAsyncContextManager[Any] | Callable[[], AbstractAsyncContextManager[Any]]
    )

__all__ = ["LeaveError", "entered", "lifespan_value", "run_within"]

# Set in the task that listens. Connections, and so jobs, get a copy of its context.
_value: ContextVar[Any] = ContextVar("rrq_fastwire_lifespan", default=None)


def lifespan_value() -> Any:
    """Return what the runner's lifespan yielded; None without a lifespan, as under rrq-runner."""
    return _value.get()


class LeaveError(Exception):
    """A lifespan raised an exception at its end. It has been logged."""


class _NotALifespanError(TypeError):
    pass


class _Entered:
    """Enter a lifespan, and leave it without passing an exception to it.

    So a lifespan needs no `finally` to clean up, even if the runner is cancelled.
    """

    def __init__(self, lifespan: Lifespan) -> None:
        self._manager: Any = lifespan
        self._token: Token[Any] | None = None

    async def enter(self) -> None:
        """Enter the lifespan. Raises _NotALifespanError, and whatever the lifespan raises."""
        if not _is_manager(self._manager) and callable(self._manager):
            self._manager = self._manager()
        if not _is_manager(self._manager):
            raise _NotALifespanError(
                "the lifespan must be an async context manager, or a function that returns one:"
                " decorate it with contextlib.asynccontextmanager"
            )
        manager: Any = self._manager
        self._token = _value.set(await manager.__aenter__())

    async def leave(self) -> None:
        """Leave the lifespan. What it raises is logged and raised again."""
        assert self._token is not None
        with suppress(ValueError):  # a test's fixture may be left in another context
            _value.reset(self._token)
        try:
            await self._manager.__aexit__(None, None, None)
        except BaseException as error:
            log(logging.ERROR, "the lifespan raised an exception at its end:", error=error)
            raise


def _is_manager(candidate: object) -> bool:
    return hasattr(type(candidate), "__aenter__") and hasattr(type(candidate), "__aexit__")


@asynccontextmanager
async def entered(lifespan: Lifespan) -> AsyncGenerator[None]:
    """Run a `with` block within a lifespan.

    Raises TypeError if the object is not a lifespan, and whatever the lifespan raises.
    """
    within = _Entered(lifespan)
    await within.enter()
    try:
        yield
    finally:
        await within.leave()


async def run_within(lifespan: Lifespan, serving: Callable[[], Awaitable[None]]) -> None:
    """Run `serving` within a lifespan, for the command.

    Raises StartError if the lifespan cannot be entered, and LeaveError if it fails at its end.
    """
    within = _Entered(lifespan)
    try:
        await within.enter()
    except _NotALifespanError as error:
        raise StartError(str(error)) from error
    except Exception as error:
        text = "the lifespan cannot be entered: correct the error above"
        raise StartError(text, details(error)) from error
    try:
        await serving()
    except BaseException:
        with suppress(Exception):
            await within.leave()
        raise
    try:
        await within.leave()
    except Exception:
        raise LeaveError from None
