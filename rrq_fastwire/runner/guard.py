"""End the process by force if it does not end in time, and end it when its parent ends.

This module is imported before anything that takes long, so that the parent is watched from the
start. process.py handles SIGTERM.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

__all__ = ["DEFAULT_GRACE", "Guard"]

# A worker has two seconds to end all its runner processes, one after another. With this grace, that
# is enough for fifty processes that have to be ended by force, if something reads their stderr.
DEFAULT_GRACE = 0.02

# How often the guard checks whether the parent is alive, and how long the handlers have to end if
# it is not. Together they are less than a second.
_PARENT_POLL_SECONDS = 0.2
_ORPHAN_GRACE_SECONDS = 0.6

# The guard waits for the grace in this many parts. On a busy machine each part ends late, so the
# main thread gets more time.
_GRACE_PARTS = 5

# How long threads and atexit functions may take once the event loop is closed, if the rest of the
# grace is shorter.
_EXIT_SECONDS = 0.1

# How long writing the last line may take: stderr may be a full pipe, or the machine may be busy.
_LAST_LINE_SECONDS = 0.1

_LAST_LINE = (
    b"rrq-fastwire-runner: ended by force: a handler, or what it left running, did not end\n"
)

# A process that is to be replaced has at least this much grace, because no orchestrator waits for
# its end. But its peers wait for their answers.
_RENEWAL_SECONDS = 1.0

# What the main thread sends to the guard.
_ENDING, _DRAINED, _CLOSED = b"e", b"d", b"c"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .handover import Handover


class Guard:
    """A thread that ends the process by force if it takes too long to end by itself.

    The thread runs from the start, because a signal handler, which may interrupt any code, cannot
    safely start one. It takes no lock that a handler could hold. But Python's garbage collector can
    run in it, and call a `__del__` that waits for such a lock. Then the guard is late.

    Arguments:
        grace: seconds from begin_end() until the event loop must be closed.
        drain: seconds between begin_end() and the start of the grace; drain_is_over() ends them
            early.
        parent: the id of the parent process. When that ends, this process ends as after SIGTERM,
            but within a second. None watches no process.
    """

    def __init__(self, grace: float, *, drain: float, parent: int | None) -> None:
        self._grace = grace
        self._drain = drain
        self._handover: Handover | None = None
        self._parent = parent
        self._starter = threading.get_ident()
        self._reader, self._writer = socket.socketpair()
        threading.Thread(target=self._run, name="rrq-fastwire-guard", daemon=True).start()

    def begin_end(self) -> None:
        """Start the drain and then the grace. Signal handlers may call this, and more than once."""
        self._writer.send(_ENDING)

    def drain_is_over(self) -> None:
        """Tell the guard that the drain is over, so that the grace starts."""
        self._writer.send(_DRAINED)

    def begin_renewal(self, handover: Handover) -> None:
        """Do what begin_end() does, but replace the process at its end, if necessary by force."""
        self._handover = handover
        self._drain, self._grace = 0.0, max(self._grace, _RENEWAL_SECONDS)
        self._writer.send(_ENDING)

    def loop_is_closed(self) -> None:
        """Tell the guard that the event loop is closed, so that only Python's own end remains."""
        self._writer.send(_CLOSED)

    def _run(self) -> None:
        if self._is_told_to_end():
            grace = self._grace
            if self._drain:
                self._receives(_DRAINED, self._drain)
        else:
            grace = min(self._grace, _ORPHAN_GRACE_SECONDS)
            # This wakes the main thread, which made this object and has to run signal handlers.
            signal.pthread_kill(self._starter, signal.SIGTERM)
        end = time.monotonic() + grace
        if any(self._receives(_CLOSED, grace / _GRACE_PARTS) for _ in range(_GRACE_PARTS)):
            time.sleep(max(_EXIT_SECONDS, end - time.monotonic()))
        _write_last_line()
        if self._handover is not None:
            self._handover.replace_process()
        os._exit(0)

    def _is_told_to_end(self) -> bool:
        """Wait for begin_end(). Return False if the parent ends first."""
        parent = self._parent
        if parent is None:
            return self._receives(_ENDING, None)
        if _was_adopted_by(parent):
            return False
        while not self._receives(_ENDING, _PARENT_POLL_SECONDS):
            if os.getppid() != parent:
                return False
        return True

    def _receives(self, message: bytes, seconds: float | None) -> bool:
        """Wait for a message, and skip others. Return False if it does not come in time."""
        while select.select((self._reader,), (), (), seconds)[0]:
            if self._reader.recv(1) == message:
                return True
        return False


def _write_last_line() -> None:
    """Write to stderr in another thread, because this one has to end the process in any case."""
    written = _thread.allocate_lock()
    written.acquire()

    def write() -> None:
        with suppress(OSError):
            os.write(2, _LAST_LINE)
        written.release()

    with suppress(RuntimeError):  # CPython 3.12 starts no threads during its own end
        _thread.start_new_thread(write, ())
        written.acquire(timeout=_LAST_LINE_SECONDS)


def _was_adopted_by(parent: int) -> bool:
    """Return whether `parent` adopted this process, because the process that started it has ended.

    A process is in the session of the one that started it, unless it leads a session of its own.
    The process that adopts orphans, init or a subreaper such as systemd, is usually in another.
    """
    if sys.platform != "linux" or parent == 0:  # 0 is a parent outside of the PID namespace
        return False
    session = os.getsid(0)
    try:
        return session not in (os.getpid(), os.getsid(parent))
    except OSError:  # the parent has just ended, which shows in getppid()
        return False
