"""Sends mail: to an SMTP server, or, in development and tests, only into a folder."""

from __future__ import annotations

import smtplib
from email.message import EmailMessage
from pathlib import Path


class Outbox:
    """Sends mail. send() blocks, so handlers use asyncio.to_thread().

    Arguments:
        folder: each mail is written to a file in this folder.
        smtp: "host:port" of a server to which each mail is also sent; "" sends no mail.
    """

    def __init__(self, folder: Path, smtp: str = "") -> None:
        self._folder = folder
        self._smtp = smtp
        folder.mkdir(parents=True, exist_ok=True)

    def send(self, id: str, to: str, subject: str, text: str) -> None:
        """Sends a mail. Does nothing if one with this id was sent, because a job may run twice."""
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
