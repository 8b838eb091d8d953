"""Replace the process with a new one that has its sockets, its process id and its command line.

An orchestrator does not notice this. If the process ended instead, the orchestrator would start
another one. But jobs that it sends in the meantime would fail, because a job fails if its
connection is closed or cannot be opened. POSIX only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType
    from typing import Any

__all__ = ["Handover"]

# What the next program gets: the parent's process id, and the descriptors of the sockets, as
# "parent,listener,connection,...".
_VARIABLE = "RRQ_FASTWIRE_RUNNER_HANDOVER"

# Not those of process.py: it imports asyncio, which imports logging, whose atexit function is then
# registered before that of the command, and does not run at a restart.
_ENDING_SIGNALS = signal.SIGTERM, signal.SIGINT


class Handover:
    """What a process inherits from the one that it replaces, and passes on to the next one.

    Create it in the main thread, before there are other threads, which would inherit the blocked
    signals, and before the settings are imported, which may change what the next program inherits.

    Attributes:
        parent: the process id of the parent when the first program started. It may have ended
            during a restart, when nothing watched it.
        listener: the inherited socket that listens; None if there is none.
        connections: the inherited sockets of connections.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._directory = ""
        with suppress(OSError):  # it was deleted
            self._directory = os.getcwd()
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._ignored = {
            number
            for number in signal.valid_signals()
            if signal.getsignal(number) is signal.SIG_IGN
        }
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        is_first = _VARIABLE not in os.environ
        parent, *numbers = os.environ.pop(_VARIABLE, str(os.getppid())).split(",")
        self._environment = dict(os.environ)
        self._kept: list[socket.socket] = []
        self._is_due = False
        self.parent = int(parent)
        sockets = [socket.socket(fileno=int(number)) for number in numbers]
        for each in sockets:
            each.set_inheritable(False)
            each.setblocking(False)
        self.listener = sockets[0] if sockets else None
        self.connections = sockets[1:]
        if not is_first:
            _reap_children()
            self._leave_at_signals()

    def _leave_at_signals(self) -> None:
        """Let SIGTERM and SIGINT, which the previous program has blocked, end the process at once.

        By default, the system would discard them if this is process 1, as in a container.
        """
        self._blocked -= set(_ENDING_SIGNALS)
        for number in _ENDING_SIGNALS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, _leave)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)

    def release_signals(self) -> None:
        """Restore the signals' defaults, because the server is about to handle them."""
        for number in _ENDING_SIGNALS:
            if signal.getsignal(number) is _leave:
                signal.signal(number, signal.SIG_DFL)

    def keep(self, descriptors: Iterable[int]) -> None:
        """Keep sockets open for the next process, even if this one closes them.

        Arguments:
            descriptors: the file descriptors of the listening socket and of the connections.

        Raises OSError, and keeps none, if there are not enough file descriptors.
        """
        try:
            for descriptor in descriptors:
                self._kept.append(socket.socket(fileno=os.dup(descriptor)))
        except OSError:
            self.abandon()
            raise
        self._is_due = True

    def keep_inherited(self) -> None:
        """Pass on to the next process the sockets that this one inherited and has not used."""
        if self.listener is not None:
            self._kept = [self.listener, *self.connections]
        self._is_due = True

    def is_due(self) -> bool:
        """Return whether the process is to be replaced at its end."""
        return self._is_due

    def abandon(self) -> None:
        """Close the kept sockets, so that the process ends instead of being replaced."""
        self._is_due = False
        for each in self._kept:
            each.close()
        self._kept.clear()

    def end_at_signals(self) -> None:
        """If the process is to be replaced, let SIGTERM and SIGINT end it instead, but not at once.

        The server no longer handles signals, but the lifespan, `atexit` functions and open files
        still have to end. The user's own signal handlers end the process if they exit. Call this
        in the main thread, and again when the event loop has removed its own signal handlers.
        """
        for number in _ENDING_SIGNALS if self._is_due else ():
            before = signal.getsignal(number)
            if before is signal.SIG_DFL:
                signal.signal(number, self._end)
            elif callable(before) and before != self._end:
                signal.signal(number, partial(self._end_if_exited, before))

    def _end(self, number: int, _: FrameType | None) -> None:
        self.abandon()
        signal.signal(number, signal.SIG_DFL)  # so that the second signal kills

    def _end_if_exited(
        self, before: Callable[..., Any], number: int, frame: FrameType | None
    ) -> None:
        try:
            before(number, frame)
        except (SystemExit, KeyboardInterrupt):
            self.abandon()
            raise

    def replace_process(self) -> None:
        """Start the next process in place of this one, if that is due. Any thread may call this.

        Returns only if it is not due. If it fails, the process ends with status 1.
        """
        if not self._is_due or os.getpid() != self._pid:  # an atexit function has forked
            return
        self._restore_signals()
        if not self._is_due:  # a signal has just arrived
            return
        os.umask(self._umask)
        for each in self._kept:
            each.set_inheritable(True)
        numbers = self.parent, *(each.fileno() for each in self._kept)
        self._environment[_VARIABLE] = ",".join(map(str, numbers))
        with suppress(OSError):
            os.chdir(self._directory)
        try:
            os.execve(sys.executable, sys.orig_argv, self._environment)
        except OSError as error:
            with suppress(OSError):
                os.write(2, f"rrq-fastwire-runner: cannot restart: {error}\n".encode())
            os._exit(1)

    def _restore_signals(self) -> None:
        """Undo what the settings and handlers have changed, as far as `exec` would keep it.

        Also block SIGTERM and SIGINT until the next program can handle them.
        """
        blocked = self._blocked | set(_ENDING_SIGNALS)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for timer in signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF:
            signal.setitimer(timer, 0)
        with suppress(ValueError):  # in the guard's thread
            for number in signal.valid_signals():
                wanted = signal.SIG_IGN if number in self._ignored else signal.SIG_DFL
                if signal.getsignal(number) not in (wanted, None):
                    signal.signal(number, wanted)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)


def _reap_children() -> None:
    """Reap ended children of the previous program, which nothing in this one knows."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
