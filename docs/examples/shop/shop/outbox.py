"""Where mail goes: to an SMTP server, or into a folder, for development and tests."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from pathlib import Path


class Outbox:
    """Sends mail. The method blocks: a handler calls it by asyncio.to_thread().

    Arguments:
        folder: takes each mail as a file.
        smtp: "host:port" of a server that takes each mail as well, or "".
    """

    def __init__(self, folder: Path, smtp: str = "") -> None:
        self._folder = folder
        self._smtp = smtp
        folder.mkdir(parents=True, exist_ok=True)

    def send(self, id: str, to: str, subject: str, text: str) -> None:
        """Sends a mail, once for each id: a job may run twice."""
        file = self._folder / f"{id}.eml"
        if file.exists():
            return
        message = EmailMessage()
        message["From"] = "shop@example.com"
        message["To"] = to
        message["Subject"] = subject
        message.set_content(text)
        if self._smtp:
            host, _, port = self._smtp.rpartition(":")
            with smtplib.SMTP(host, int(port), timeout=10) as server:
                server.send_message(message)
        file.write_bytes(bytes(message))
