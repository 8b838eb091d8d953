"""What SIGTERM and SIGINT do to the runner's process, and to those that its handlers fork."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import contextmanager
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import Any, TypeAlias

    SignalHandler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"

__all__ = ["ending_signals"]

_NUMBERS = int(signal.SIGTERM), int(signal.SIGINT)

# What the signals did before _on_signal() took their place.
_before: dict[int, SignalHandler] = {}

# Called with a signal's number, and with what a handler of the user's own raised.
_listeners: list[Callable[[int, BaseException | None], None]] = []

# The signal that has begun the end, if it has come.
_received: list[int] = []


@contextmanager
def ending_signals(signalled: Callable[[int], None]) -> Generator[asyncio.Event]:
    """Gives an event that SIGTERM and SIGINT set; the second of them kills the process.

    A signal that is ignored stays so. A signal handler of the user's own is called, and decides:
    the event is set if it raises SystemExit or KeyboardInterrupt. That is raised at the end of the
    context, and not in the midst of a job.

    Arguments:
        signalled: called with the number of the first, even while a handler keeps the event loop.
    """
    ended = asyncio.Event()
    if threading.current_thread() is not threading.main_thread():
        yield ended
        return
    loop = asyncio.get_running_loop()
    raised: list[BaseException] = []

    def listener(number: int, error: BaseException | None) -> None:
        if error is not None:
            raised.append(error)
        signalled(number)
        loop.call_soon_threadsafe(end)

    def end() -> None:
        ended.set()
        _let_the_system_kill()

    if not _listeners:
        _take_signals()
    _listeners.append(listener)
    try:
        yield ended
    finally:
        _listeners.remove(listener)
        if not _listeners:
            _give_signals_back()
    for error in raised:
        raise error


def _take_signals() -> None:
    # Not loop.add_signal_handler(), which waits for the loop.
    for number in _NUMBERS:
        before = signal.getsignal(number)
        if before is signal.SIG_DFL or callable(before):
            _before[number] = before
            signal.signal(number, _on_signal)


def _give_signals_back() -> None:
    for number, before in _before.items():
        if signal.getsignal(number) in (_on_signal, signal.SIG_DFL):  # and no handler's own
            signal.signal(number, before)
    _before.clear()
    _received.clear()


def _on_signal(received: int, frame: FrameType | None) -> None:
    if _received:
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)
        return
    before = _before[received]
    raised: BaseException | None = None
    if callable(before) and not _is_pythons_own(before):
        try:
            before(received, frame)
        except (SystemExit, KeyboardInterrupt) as error:
            raised = error
        else:
            return
    # The second signal may have come already, and Python is about to call this function for it.
    # It would find SIG_DFL instead, ignore the signal, and print that to stderr.
    _received.append(received)
    for listener in _listeners:
        listener(received, raised)


def _let_the_system_kill() -> None:
    """Make the next signal kill even while C code runs, in which Python calls no signal handler."""
    for number in _before:
        signal.signal(number, signal.SIG_DFL)  # first calls _on_signal() for what has come


def _is_pythons_own(handler: Callable[..., Any]) -> bool:
    """Whether it is Python's own for SIGINT: raise KeyboardInterrupt, or cancel the main task."""
    if isinstance(handler, partial):
        handler = handler.func
    module = getattr(handler, "__module__", None)
    return handler is signal.default_int_handler or module == "asyncio.runners"


# Children that a handler forks have the signal handlers that were in force before, so that
# Process.terminate() of multiprocessing ends them at once. The signals are blocked meanwhile: a
# child would lose one that comes before it has those handlers.

_mask = threading.local()


def _before_fork() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _before)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _after_fork_in_child() -> None:
    _give_signals_back()
    _listeners.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
