"""Handlers that several test files use."""

from __future__ import annotations

import asyncio
import contextlib


async def echo(request):
    return request.params


async def fail(request):
    raise ValueError("failed")


async def forever(request):
    await asyncio.Event().wait()


async def spin(request):
    while True:
        await asyncio.sleep(0)


async def swallow(request):
    """Suppresses its cancellation, and returns a result later."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return "late"


async def fail_instead(request):
    try:
        await asyncio.Event().wait()
    finally:
        raise ValueError("late")


async def linger(request):
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)


async def cancel_itself(request):
    asyncio.current_task().cancel()
    return 1


async def cancel_itself_and_wait(request):
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


class RudeStrError(Exception):
    """An exception whose text cannot be read."""

    def __str__(self):
        raise ZeroDivisionError


def raising(make):
    """Two handlers that raise an exception: at once, and after a wait."""

    async def report(request):
        raise make()

    async def report_later(request):
        await asyncio.sleep(0)
        raise make()

    return report, report_later


def nested(levels, of=list):
    """Containers that are nested this many levels deep."""
    value = of()
    for _ in range(levels - 1):
        value = of([value])
    return value


def giving(make):
    """A handler that returns what make() returns."""

    async def report(request):
        return make()

    return report
