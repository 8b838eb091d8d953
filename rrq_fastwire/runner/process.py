"""Handle SIGTERM and SIGINT in the runner's process, and in those that its handlers fork."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType
    from typing import Any, TypeAlias

    SignalHandler: TypeAlias = "Callable[[int, FrameType | None], Any] | int | None"

__all__ = ["ending_signals", "exit_forked_child"]

_NUMBERS = int(signal.SIGTERM), int(signal.SIGINT)

# The signal handlers that _on_signal() has replaced, by number. If a job has replaced _on_signal(),
# the handler before that stays here, because the job's handler may call _on_signal() later.
_before: dict[int, SignalHandler] = {}

# Called with a signal's number, and with what the user's own signal handler raised, or None. The
# values are their event loops.
_listeners: dict[Callable[[int, BaseException | None], None], asyncio.AbstractEventLoop] = {}

# The signal that began the shutdown, once it has arrived.
_received: list[int] = []

# The socket pair that wakes the event loop when a signal arrives. Empty if the loop has a wakeup
# descriptor of its own.
_wakeup_sockets: list[socket.socket] = []


@contextmanager
def ending_signals(signalled: Callable[[int], None]) -> Generator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set; the second signal kills the process.

    A signal that is ignored stays ignored. A signal handler of the user's own is called first. Then
    the event is set only if that handler raises SystemExit or KeyboardInterrupt. The exception is
    raised again at the end of the `with` block, not in the middle of a job. Outside of the main
    thread, signals are not handled.

    Arguments:
        signalled: called with the number of the first signal, even while a handler blocks the event
            loop.
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
        _wake_at_signals(loop)
        _take_signals()
    _listeners[listener] = loop
    try:
        yield ended
    finally:
        del _listeners[listener]
        if not _listeners:
            _stop_waking(loop)
            _give_signals_back()
    for error in raised:
        raise error


def exit_forked_child(error: BaseException, runners_pid: int) -> None:
    """End this process if it is a child that a handler has forked, and `error` ends its loop.

    Otherwise, do nothing. Functions of atexit are not called. The parent answers the job. If the
    child's event loop went on, the child would answer, too, and would be a second runner on the
    same sockets.

    Arguments:
        error: a SystemExit, which gives the exit status, or a CancelledError, with which asyncio
            cancels all tasks after a SystemExit. Then the status is 1.
        runners_pid: the id of the process that the runner was made in.
    """
    # Not isinstance(), because it reads `__class__`, which can be the handler's own code.
    ends = issubclass(type(error), (SystemExit, asyncio.CancelledError))
    if not ends or os.getpid() == runners_pid:
        return
    status = 1
    with suppress(BaseException):  # of the handler's code
        code = getattr(error, "code", status)  # a CancelledError has none
        if isinstance(code, int):
            status = code & 0xFF
        elif code is None:
            status = 0
        else:
            print(code, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _take_signals() -> None:
    # Not loop.add_signal_handler(), which has to wait for the event loop.
    _before.clear()
    for number in _NUMBERS:
        before = signal.getsignal(number)
        if before is signal.SIG_DFL or callable(before):
            _before[number] = before
            signal.signal(number, _on_signal)


def _give_signals_back() -> None:
    for number, before in list(_before.items()):
        if signal.getsignal(number) in (_on_signal, signal.SIG_DFL):  # else a job has replaced it
            signal.signal(number, before)
            del _before[number]
    _received.clear()


def _wake_at_signals(loop: asyncio.AbstractEventLoop) -> None:
    """Let signals wake the event loop, as loop.add_signal_handler() does.

    Otherwise a signal that arrives just before the loop waits, or that the kernel delivers to
    another thread, does not interrupt the wait, and Python calls its handler only at the next
    event. A job can undo this: loop.remove_signal_handler() removes all wakeup descriptors.
    """
    if not isinstance(loop, asyncio.SelectorEventLoop):
        return  # uvloop, and asyncio on Windows, have a descriptor of their own
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    if before == -1:
        loop.add_reader(reader, reader.recv, 1024)
        _wakeup_sockets.extend((reader, writer))
    else:  # of loop.add_signal_handler()
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        reader.close()
        writer.close()


def _stop_waking(loop: asyncio.AbstractEventLoop) -> None:
    if _wakeup_sockets:
        reader, writer = _wakeup_sockets
        _wakeup_sockets.clear()
        if not loop.is_closed():
            loop.remove_reader(reader)
        current = signal.set_wakeup_fd(-1)
        if current != writer.fileno():
            signal.set_wakeup_fd(current, warn_on_full_buffer=False)
        reader.close()
        writer.close()


def _on_signal(received: int, frame: FrameType | None) -> None:
    before = _before.get(received, signal.SIG_DFL)
    # This is the second signal, or the runner has ended and there is no handler to call.
    if _received or not (_listeners or callable(before)):
        signal.signal(received, signal.SIG_DFL)
        os.kill(os.getpid(), received)
        return
    if callable(before) and not _listeners:  # called by a signal handler that has replaced this one
        before(received, frame)
        return
    raised: BaseException | None = None
    if callable(before) and not _is_pythons_own(before):
        try:
            before(received, frame)
        except (SystemExit, KeyboardInterrupt) as error:
            raised = error
        else:
            return
    # SIG_DFL is set later, by _let_the_system_kill(). If a second signal has arrived already,
    # Python is about to call this function for it. If it found SIG_DFL instead, it would ignore the
    # signal and print a message to stderr.
    _received.append(received)
    for listener in _listeners:
        listener(received, raised)


def _let_the_system_kill() -> None:
    """Let the next signal kill the process even while C code runs.

    Python would call a signal handler only after that code.
    """
    for number in _before:
        signal.signal(number, signal.SIG_DFL)  # calls _on_signal() first, if a signal is pending


def _is_pythons_own(handler: Callable[..., Any]) -> bool:
    """Return whether it is Python's own SIGINT handler, or asyncio's, which cancels the task."""
    if isinstance(handler, partial):
        handler = handler.func
    module = getattr(handler, "__module__", None)
    return handler is signal.default_int_handler or module == "asyncio.runners"


# Processes that a job's handler forks get the previous signal handlers back, so that
# Process.terminate() of multiprocessing ends them at once. Signals are blocked during the fork.
# Otherwise a child would lose a signal that arrives before it has those signal handlers.

_mask = threading.local()


def _before_fork() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _before)


def _after_fork_in_parent() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _after_fork_in_child() -> None:
    if _listeners:
        _give_signals_back()
        # Ends a child that returns to the event loop. From CPython 3.14 on, a SystemExit of a task
        # does not: the loop would go on, and read from the connections of the parent.
        for loop in _listeners.values() if sys.version_info >= (3, 14) else ():
            with suppress(RuntimeError):  # in debug mode, if another thread has forked
                loop.call_soon(exit_forked_child, SystemExit(1), 0)
        _listeners.clear()
    if _wakeup_sockets:
        signal.set_wakeup_fd(-1)
        for each in _wakeup_sockets:
            each.close()
        _wakeup_sockets.clear()
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
