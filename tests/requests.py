"""Requests as the orchestrator sends them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from rrq_fastwire import ExecutionContext, ExecutionRequest


def new_request(
    function_name,
    params=None,
    *,
    id="r",
    job_id=None,
    deadline=None,
    now=None,
    protocol_version="2",
    **context,
):
    """A request.

    Arguments:
        id: its `request_id`.
        job_id: by default, one that belongs to `id`.
        deadline: seconds from now, or None.
        now: the time from which the deadline counts; by default the present.
        context: other fields of the request's context.
    """
    now = datetime.now(timezone.utc) if now is None else now
    job_id = f"job of {id}" if job_id is None else job_id
    return ExecutionRequest(
        protocol_version=protocol_version,
        request_id=id,
        job_id=job_id,
        function_name=function_name,
        params={} if params is None else params,
        context=ExecutionContext(
            job_id=job_id,
            attempt=1,
            enqueue_time=now,
            queue_name="q",
            deadline=None if deadline is None else now + timedelta(seconds=deadline),
            **context,
        ),
    )
