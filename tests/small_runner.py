"""A small runner that can break rules of the protocol, for the tests of `check`.

small_runner.py [RULE-TO-BREAK ...] --tcp-socket HOST:PORT
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from contextlib import suppress
from datetime import datetime, timezone


class SmallRunner:
    """A runner that keeps to the protocol, except for the rules that it has to break.

    Arguments:
        broken: phrases that name these rules. Each phrase occurs below, where its rule is kept.
    """

    def __init__(self, *broken: str) -> None:
        self.broken = set(broken)
        self.running: dict[tuple, tuple[dict, asyncio.Task]] = {}
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while (payload := await self.read(reader)) is not None:
                with suppress(ValueError, KeyError, TypeError):
                    await self.receive(json.loads(payload), payload, writer)
                if "one write, one frame" in self.broken:
                    await reader.read(65536)
        self.writers.discard(writer)
        if "jobs outlive their connection" in self.broken:
            mine = [
                task for (connection, _), (_, task) in self.running.items() if connection is writer
            ]
            await asyncio.gather(*mine, return_exceptions=True)
        else:
            self.cancel(lambda connection, _: connection is writer)
        writer.close()

    async def read(self, reader: asyncio.StreamReader) -> bytes | None:
        """The next payload; None if the connection has to be closed."""
        try:
            length = int.from_bytes(await reader.readexactly(4))
        except asyncio.IncompleteReadError:
            if "half a header is waited for" in self.broken:
                await asyncio.sleep(60)
            return None
        if length == 0 and "empty frames are skipped" in self.broken:
            return b"null"
        limit = 16 * 1024 * 1024
        limit = limit - 1 if "largest frame refused" in self.broken else limit
        limit = 2**32 if "no limit" in self.broken else limit
        if not 0 < length <= limit:
            if "bad frame closes all" in self.broken:
                for writer in self.writers:
                    writer.close()
            if "bad frame ends the runner" in self.broken:
                os._exit(7)
            return None
        return await reader.readexactly(length)

    async def receive(self, message: dict, payload: bytes, writer: asyncio.StreamWriter) -> None:
        fields = message["payload"]
        if "type comes first" in self.broken and not payload.lstrip().startswith(b'{"type"'):
            return
        if message["type"] == "cancel":
            if fields.get("protocol_version", "2") == "2" or "any version" in self.broken:
                self.take_cancel(fields, writer)
            return
        if message["type"] != "request":
            return
        answer = {key: fields[key] for key in ("job_id", "request_id")}
        if "context" not in fields:
            self.answer(writer, answer, error="no context")
        elif "strict fields" in self.broken and len(fields) > 6:
            self.answer(writer, answer, error="unknown fields")
        elif fields.get("protocol_version", "2") != "2" and "any version" not in self.broken:
            self.answer(writer, answer, error="Unsupported protocol version")
        elif (
            len([1 for key in self.running if key[0] is writer]) >= 64
            and "never busy" not in self.broken
        ):
            self.answer(writer, answer, error="busy")
        else:
            task = asyncio.ensure_future(self.run(fields, answer, writer))
            self.running[writer, fields["request_id"]] = fields, task
            if "one at a time" in self.broken:
                await task

    def take_cancel(self, cancel: dict, writer: asyncio.StreamWriter) -> None:
        request_id = cancel.get("request_id")
        if "no cancels" in self.broken:
            return
        if "late cancels are answered" in self.broken and (writer, request_id) not in self.running:
            self.answer(
                writer, {"job_id": cancel["job_id"], "request_id": request_id}, error="late"
            )
        self.cancel(
            lambda connection, fields: (
                cancel["job_id"] == fields["job_id"]
                and (
                    request_id in (None, fields["request_id"])
                    or "cancels take the whole job" in self.broken
                )
                and (connection is writer or "cancels are local" not in self.broken)
            )
        )

    def cancel(self, wanted) -> None:
        for (connection, request_id), (fields, task) in list(self.running.items()):
            if wanted(connection, fields):
                task.cancel()
                del self.running[connection, request_id]
                if "cancels are not answered" not in self.broken:
                    answer = {key: fields[key] for key in ("job_id", "request_id")}
                    self.answer(connection, answer, type="cancelled", error="Job cancelled")

    async def run(self, fields: dict, answer: dict, writer: asyncio.StreamWriter) -> None:
        deadline = fields["context"].get("deadline")
        seconds = None
        if deadline is not None and "no deadlines" not in self.broken:
            moment = datetime.fromisoformat(deadline)
            seconds = (moment - datetime.now(timezone.utc)).total_seconds()
        params = fields.get("params", {})
        name = fields["function_name"]
        print(f"running {name}", file=sys.stderr)
        status, outcome = "error", {}
        try:
            if seconds is not None and seconds <= 0:
                raise TimeoutError
            async with asyncio.timeout(seconds):
                if name == "echo":
                    status, outcome = "success", {"result": self.echoed(params)}
                elif name == "sleep":
                    await asyncio.sleep(params["seconds"])
                    status = "success"
                elif name == "retry":
                    status = "error" if "no retry" in self.broken else "retry"
                elif name == "fail":
                    outcome = {"error": "failed"}
                else:
                    outcome = {"error": "not found", "type": "handler_not_found"}
        except TimeoutError:
            status, outcome = "timeout", {"error": "too late"}
        del self.running[writer, fields["request_id"]]
        self.answer(writer, answer, status, **outcome)

    def echoed(self, params: dict) -> dict:
        if "numbers are doubles" in self.broken:
            as_double = lambda text: int(float(text))  # noqa: E731
            return json.loads(json.dumps(params), parse_int=as_double)
        if "no astral text" in self.broken:
            return json.loads(re.sub(r"\\ud[89ab]..\\ud[c-f]..", "?", json.dumps(params)))
        if "shallow" in self.broken and len(json.dumps(params)) > 500 and "in" in params:
            raise TimeoutError
        return params

    def answer(self, writer, answer: dict, status="error", *, error=None, type=None, **fields):
        answer = {**answer, "status": status, **fields}
        if error is not None:
            answer["error"] = {"message": error, "type": type}
        if "failure is a status" in self.broken and status == "error":
            answer["status"] = "failure"
        if "answers name no job" in self.broken:
            del answer["job_id"]
        escapes = "answers are escaped" in self.broken
        text = json.dumps({"type": "response", "payload": answer}, ensure_ascii=escapes)
        frame = len(text.encode()).to_bytes(4) + text.encode()
        if not writer.is_closing():
            writer.write(frame * 2 if "answers come twice" in self.broken else frame)


async def main(*arguments: str) -> None:
    *broken, _, address = arguments
    host, port = address.split(":")
    async with await asyncio.start_server(SmallRunner(*broken).serve, host, int(port)) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
