"""Replaces the process by a new one that has its sockets, its id and its command line.

An orchestrator does not notice it. If the process ended instead, the orchestrator would start
another, but would meanwhile fail the jobs that it sends: a job fails if its connection is closed or
cannot be made. POSIX only.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Handover"]

# The descriptors of the sockets, as "listener,connection,...".
_VARIABLE = "RRQ_FASTWIRE_RUNNER_SOCKETS"


class Handover:
    """What a process has got from the one that it replaces, and leaves to the one after it.

    To be made before the settings are imported, which may change the directory or the environment.

    Attributes:
        listener: the socket that listens, if this process replaces another.
        connections: the connections of that one.
    """

    def __init__(self) -> None:
        self._directory = os.getcwd()
        text = os.environ.pop(_VARIABLE, "")
        self._environment = dict(os.environ)
        self._kept: list[socket.socket] = []
        self._is_due = False
        sockets = [socket.socket(fileno=int(number)) for number in text.split(",") if number]
        for each in sockets:
            each.set_inheritable(False)
            each.setblocking(False)
        self.listener = sockets[0] if sockets else None
        self.connections = sockets[1:]

    def keep(self, descriptors: Iterable[int]) -> None:
        """Keeps sockets open for the next process, whatever this one does with them.

        Arguments:
            descriptors: the listener's, and those of the connections.
        """
        self._kept += [socket.socket(fileno=os.dup(descriptor)) for descriptor in descriptors]
        self._is_due = True

    def keep_inherited(self) -> None:
        """Leaves to the next process what this one was given, and has not used."""
        if self.listener is not None:
            self._kept = [self.listener, *self.connections]
        self._is_due = True

    def is_due(self) -> bool:
        """Whether the process is to be replaced when it has ended all that it did."""
        return self._is_due

    def abandon(self) -> None:
        """Ends the process after all."""
        self._is_due = False
        for each in self._kept:
            each.close()
        self._kept.clear()

    def replace_process(self) -> None:
        """Starts the next process in the place of this one, if that is due.

        Returns only if it is not, or fails. Any thread may call this.
        """
        if not self._is_due:
            return
        for each in self._kept:
            each.set_inheritable(True)
        self._environment[_VARIABLE] = ",".join(str(each.fileno()) for each in self._kept)
        with suppress(OSError):
            os.chdir(self._directory)
        with suppress(OSError):
            os.execve(sys.executable, sys.orig_argv, self._environment)
