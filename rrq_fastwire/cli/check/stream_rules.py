"""The checks of streams: frames, many jobs at a time, deadlines, cancels and ends."""

from __future__ import annotations

import asyncio
import struct
import uuid

from ... import FRAME_HEADER_LEN, MAX_FRAME_SIZE, OutcomeStatus, pack_frame
from ..reset import reset
from .peer import (
    LONG,
    SHORT,
    Request,
    Runner,
    ViolationError,
    cancel,
    compact,
    expect_status,
    expect_success,
    summary,
)
from .rules import CHECKS, check

# This module adds the last checks, so CHECKS is complete once it is imported.
__all__ = ["CHECKS"]

IN_FLIGHT = 64


# Frames


@check("frame in many pieces", "put together")
async def check_frame_in_many_pieces(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("echo", {"a": 1})
    frame = pack_frame(request.payload())
    for at in range(len(frame) - 1):
        await peer.write(frame[at : at + 1])
        await asyncio.sleep(0)
    peer.expect(request)
    await peer.write(frame[-1:])
    expect_success(await peer.answer(), {"a": 1})


@check("many frames in one write", "one answer each")
async def check_many_frames_in_one_write(runner: Runner) -> None:
    peer = await runner.connect()
    for _ in range(3):
        await peer.send(*(Request("echo", {"number": number}) for number in range(IN_FLIGHT)))
        for _ in range(IN_FLIGHT):
            expect_success(await peer.answer())
    await peer.expect_silence()


@check("request of 16 MiB", "accepted")
async def check_request_of_16_mib(runner: Runner) -> None:
    request = Request("sleep", {"seconds": 0, "padding": ""})
    request.fields["params"]["padding"] = "x" * (MAX_FRAME_SIZE - len(request.payload()))
    expect_success(await (await runner.connect()).ask(request))


@check("answer near 16 MiB", "sent as a frame of at most 16 MiB, or as an error")
async def check_answer_near_16_mib(runner: Runner) -> str | None:
    # 8 MiB in UTF-8, but 24 MiB if the runner escapes these characters.
    params = {"text": "é" * (4 * 1024 * 1024)}
    outcome = await (await runner.connect()).ask(Request("echo", params))
    if outcome.status is OutcomeStatus.ERROR:
        return summary(outcome)
    expect_success(outcome)
    if outcome.result != params:
        raise ViolationError("success, with another result")
    return None


@check("frame of 16 MiB + 1", "closes its connection at the header, and no other")
async def check_frame_of_16_mib_1(runner: Runner) -> None:
    await _expect_hang_up(runner, struct.pack(">I", MAX_FRAME_SIZE + 1))


@check("frame of 0 bytes", "closes its connection, and no other")
async def check_frame_of_0_bytes(runner: Runner) -> None:
    await _expect_hang_up(runner, bytes(FRAME_HEADER_LEN))


@check("garbage", "closes its connection, and no other")
async def check_garbage(runner: Runner) -> None:
    await _expect_hang_up(runner, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


async def _expect_hang_up(runner: Runner, data: bytes) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.write(data)
        await peer.expect_end()


@check("half a frame", "ends its connection, and no other")
async def check_half_a_frame(runner: Runner) -> None:
    frame = pack_frame(Request("echo").payload())
    async with runner.bystander():
        for half in (frame[:2], frame[: len(frame) // 2]):
            peer = await runner.connect()
            await peer.write(half)
            peer.writer.write_eof()
            await peer.expect_end()


@check("empty connection", "no effect: this is how the orchestrator probes a runner")
async def check_empty_connection(runner: Runner) -> None:
    async with runner.bystander():
        peer = await runner.connect()
        peer.writer.write_eof()
        await peer.expect_end()


# Payloads that are not valid messages


@check("payload that is not JSON", "its connection stays open", is_open=True)
async def check_payload_that_is_not_json(runner: Runner) -> None:
    await _expect_still_open(runner, b'{"type":"request",', b"\xff\xfe", b"NaN")


@check("unknown type of message", "its connection stays open", is_open=True)
async def check_unknown_type_of_message(runner: Runner) -> None:
    await _expect_still_open(runner, compact({"type": "ping", "payload": {}}))


async def _expect_still_open(runner: Runner, *payloads: bytes) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.send(*payloads)
        await peer.expect_echo()


@check("request without a context", "answered with status error", is_open=True)
async def check_request_without_a_context(runner: Runner) -> str:
    peer = await runner.connect()
    request = Request("echo")
    del request.fields["context"]
    async with runner.bystander():
        return expect_status(await peer.ask(request), OutcomeStatus.ERROR)


# Many at a time


@check("concurrency", "short jobs are answered before a long one that came first")
async def check_concurrency(runner: Runner) -> None:
    peer = await runner.connect()
    slow = Request("sleep", {"seconds": SHORT})
    await peer.send(slow, Request("sleep", {"seconds": 0}), Request("echo"))
    outcomes = await peer.answers(3)
    for outcome in outcomes.values():
        expect_success(outcome)
    if list(outcomes)[-1] != slow.request_id:
        raise ViolationError("the long job was not answered last")


@check("busy", f"the last of {IN_FLIGHT + 1} in flight is answered at once with status error")
async def check_busy(runner: Runner) -> str:
    peer = await runner.connect()
    job_id = str(uuid.uuid4())
    jobs = [Request("sleep", {"seconds": LONG}, job_id=job_id) for _ in range(IN_FLIGHT)]
    extra = Request("sleep", {"seconds": LONG})
    await peer.send(*jobs, extra)
    outcome = await peer.answer()
    seen = expect_status(outcome, OutcomeStatus.ERROR)
    if outcome.request_id != extra.request_id:
        raise ViolationError(f"one of the first {IN_FLIGHT}: {seen}")
    await peer.send(cancel(job_id))
    for _ in jobs:
        expect_status(await peer.answer(), OutcomeStatus.ERROR, "cancelled")
    await peer.expect_echo()
    return seen


# Deadlines and cancels


@check("deadline already past", "status timeout")
async def check_deadline_already_past(runner: Runner) -> str:
    outcome = await (await runner.connect()).ask(Request("echo", seconds=-5))
    return expect_status(outcome, OutcomeStatus.TIMEOUT)


@check("deadline passes", "status timeout, and nothing when the handler would have ended")
async def check_deadline_passes(runner: Runner) -> str:
    peer = await runner.connect()
    outcome = await peer.ask(Request("sleep", {"seconds": SHORT}, seconds=SHORT / 3))
    seen = expect_status(outcome, OutcomeStatus.TIMEOUT)
    await peer.expect_silence()
    return seen


@check("cancel by request", "status error, type cancelled; other requests of the job continue")
async def check_cancel_by_request(runner: Runner) -> str:
    peer = await runner.connect()
    first = Request("sleep", {"seconds": LONG})
    other = Request("sleep", {"seconds": SHORT}, job_id=first.job_id)
    await peer.start(first, other)
    await runner.send_and_leave(cancel(first.job_id, first.request_id))
    outcomes = await peer.answers(2)
    expect_success(outcomes[other.request_id])
    seen = expect_status(outcomes[first.request_id], OutcomeStatus.ERROR, "cancelled")
    await peer.expect_silence()
    return seen


@check("cancel by job", "all requests of the job are cancelled, on any connection")
async def check_cancel_by_job(runner: Runner) -> None:
    peers = [await runner.connect(), await runner.connect()]
    job_id = str(uuid.uuid4())
    for peer in peers:
        jobs = [Request("sleep", {"seconds": LONG}, job_id=job_id) for _ in range(2)]
        await peer.start(*jobs)
    await runner.send_and_leave(cancel(job_id))
    for peer in peers:
        for _ in range(2):
            expect_status(await peer.answer(), OutcomeStatus.ERROR, "cancelled")


@check("cancel after its request", "status error, type cancelled")
async def check_cancel_after_its_request(runner: Runner) -> str:
    peer = await runner.connect()
    before, request = Request("echo"), Request("sleep", {"seconds": LONG})
    await peer.send(before, request, cancel(request.job_id, request.request_id))
    outcomes = await peer.answers(2)
    expect_success(outcomes[before.request_id])
    return expect_status(outcomes[request.request_id], OutcomeStatus.ERROR, "cancelled")


@check("cancel too late", "ignored, as is the cancel of an unknown job")
async def check_cancel_too_late(runner: Runner) -> None:
    peer = await runner.connect()
    request = Request("echo")
    expect_success(await peer.ask(request), {})
    await peer.send(
        cancel(request.job_id, request.request_id), cancel(request.job_id), cancel("unknown", "x")
    )
    await peer.expect_silence()


@check("end of a connection", "cancels its jobs: none succeeds, and the runner closes it")
async def check_end_of_a_connection(runner: Runner) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.send(Request("sleep", {"seconds": SHORT}), Request("sleep", {"seconds": LONG}))
        peer.writer.write_eof()
        for _ in range(2):
            try:
                outcome = await peer.answer()
            except (EOFError, ConnectionError):
                return
            expect_status(outcome, OutcomeStatus.ERROR, "cancelled")
        await peer.expect_end()


@check("reset of a connection", "does not disturb another connection")
async def check_reset_of_a_connection(runner: Runner) -> None:
    peer = await runner.connect()
    async with runner.bystander():
        await peer.start(Request("sleep", {"seconds": LONG}))
        reset(peer.writer.transport)


@check("alive at the end", "the runner still runs jobs, and its process has not ended")
async def check_alive_at_the_end(runner: Runner) -> None:
    ended = await runner.ended()
    if ended is not None:
        raise ViolationError(ended)
    await (await runner.connect()).expect_echo()
