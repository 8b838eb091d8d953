"""`call`: run one job, without Redis and without an orchestrator."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.highlighter import JSONHighlighter

from .. import ExecutionOutcome, OutcomeStatus, _json
from .formatting import json_for_stdout, printable
from .message_lines import TOO_DEEP
from .runner_process import RunnerError
from .target import Number, Target, run, runner_option, running_target, split_target


def _pair(text: str, expected: str = "KEY=VALUE") -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key):
        raise click.UsageError(f"expected {expected}, got {text!r}")
    return key, value


def _parse_params(arguments: list[str]) -> dict[str, Any]:
    """Return params from JSON objects and KEY=VALUE. Later values replace earlier ones."""
    params: dict[str, Any] = {}
    for argument in arguments:
        if argument.lstrip().startswith("{"):
            try:
                params |= _json.loads(argument.encode())
            except ValueError as error:
                raise click.UsageError(f"{argument!r} is not a JSON object: {error}") from None
            continue
        key, text = _pair(argument, "a JSON object or KEY=VALUE")
        try:
            params[key] = _json.loads(text.encode())
        except ValueError:
            params[key] = text
    return params


@click.command("call")
@click.argument("arguments", nargs=-1, metavar="[HOST:PORT] FUNCTION [JSON] [KEY=VALUE]...")
@click.option(
    "--timeout", type=Number(), metavar="SECONDS", help="Let the job time out after this time."
)
@click.option(
    "--attempt",
    type=click.IntRange(0, 2**32 - 1),
    default=1,
    metavar="N",
    show_default=True,
    help="The number of the attempt.",
)
@click.option(
    "--trace", multiple=True, metavar="KEY=VALUE", help="For the trace_context; repeatable."
)
@runner_option
def command(
    arguments: tuple[str, ...],
    timeout: float | None,
    attempt: int,
    trace: tuple[str, ...],
    runner: str | None,
) -> int:
    """Run one handler of a runner, and print its result.

    The params are a JSON object, or KEY=VALUE arguments. A value that is valid JSON is read as
    JSON, any other as text.

    The result of a success goes to stdout as JSON, and the exit status is 0. Any other outcome is
    one line on stderr, and the exit status is 1, as it is if the connection is lost.

    Example: rrq-fastwire call 127.0.0.1:9000 greet '{"name": "Ada"}' loud=true
    """
    source, rest = split_target(arguments, runner)
    if not rest:
        raise click.UsageError("no function given")
    function_name, params = rest[0], _parse_params(rest[1:])
    trace_context = dict(_pair(text) for text in trace) or None
    outcome = run(
        _call(
            source,
            function_name,
            params,
            timeout=timeout,
            attempt=attempt,
            trace_context=trace_context,
        )
    )
    if outcome.status is not OutcomeStatus.SUCCESS:
        click.echo(failure(outcome), err=True)
        return 1
    on_terminal = sys.stdout.isatty()
    layout: dict[str, Any] = {"indent": 2} if on_terminal else {"separators": (",", ":")}
    try:
        text = json_for_stdout()(json.dumps(outcome.result, ensure_ascii=False, **layout))
    except RecursionError:
        raise click.ClickException(f"the job has succeeded, but its result is {TOO_DEEP}") from None
    if on_terminal:
        Console(highlight=False, soft_wrap=True).print(JSONHighlighter()(text))
    else:
        print(text)
    return 0


async def _call(
    source: Target | list[str], function_name: str, params: dict[str, Any], **options: Any
) -> ExecutionOutcome:
    async with running_target(source) as target, await target.connect() as client:
        try:
            return await client.execute(function_name, params, **options)
        except TimeoutError:
            raise RunnerError(
                "the runner has not answered within a second of the deadline"
            ) from None


def failure(outcome: ExecutionOutcome) -> str:
    """Return an outcome other than a success as one line."""
    text = str(outcome.status)
    error = outcome.error
    if error is not None:
        names = [name for name in (error.type, error.code) if name and name != text]
        if names:
            text += f" ({', '.join(names)})"
        text += f": {error.message}"
        if error.details is not None:
            text += f"  details: {_details(error.details)}"
    if outcome.retry_after_seconds is not None:
        text += f"  retry after {outcome.retry_after_seconds:g} s"
    return printable(text)


def _details(details: Any) -> str:
    try:
        return json.dumps(details, ensure_ascii=False)
    except RecursionError:
        return TOO_DEEP
