"""Messages are standard dataclasses, which work with Python's own tools."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from datetime import datetime, timezone

import pytest

from rrq_fastwire import (
    CancelRequest,
    ExecutionContext,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRequest,
    OutcomeStatus,
    OutcomeType,
)

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)


def build(cls):
    context = ExecutionContext(job_id="j", attempt=1, enqueue_time=NOON, queue_name="q")
    return {
        ExecutionContext: context,
        ExecutionRequest: ExecutionRequest(
            request_id="r", job_id="j", function_name="f", params={"a": [1]}, context=context
        ),
        ExecutionError: ExecutionError(message="m"),
        ExecutionOutcome: ExecutionOutcome.failure("j", "r", "m", details=[1]),
        CancelRequest: CancelRequest(job_id="j"),
    }[cls]


classes = pytest.mark.parametrize(
    "cls", [ExecutionContext, ExecutionRequest, ExecutionError, ExecutionOutcome, CancelRequest]
)


@classes
def test_messages_are_compared_by_value_and_have_no_hash(cls):
    one, other = build(cls), build(cls)
    assert one == other
    assert one != "text"
    setattr(other, dataclasses.fields(cls)[0].name, "changed")
    assert one != other
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@classes
def test_messages_have_no_other_attributes_than_their_fields(cls):
    message = build(cls)
    with pytest.raises(AttributeError):
        message.unknown = 1
    assert not hasattr(message, "__dict__")


@classes
def test_reading_a_field_that_is_not_set_raises_attribute_error(cls):
    """The compiled codec relies on this, because it reads and writes the memory of the slots."""
    message = object.__new__(cls)
    for field in dataclasses.fields(cls):
        with pytest.raises(AttributeError, match=field.name):
            getattr(message, field.name)


@classes
def test_constructors_take_keywords_only_and_every_required_one(cls):
    values = {field.name: getattr(build(cls), field.name) for field in dataclasses.fields(cls)}
    assert cls(**values) == build(cls)
    for arguments, keywords in ((("x",), values), ((), {**values, "unknown": 1}), ((), {})):
        with pytest.raises(TypeError):
            cls(*arguments, **keywords)


@classes
def test_messages_are_copied_replaced_and_pickled(cls):
    message = build(cls)
    clones = [copy.copy(message), copy.deepcopy(message), dataclasses.replace(message)]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        clones.append(pickle.loads(pickle.dumps(message, protocol)))
    for clone in clones:
        assert clone == message
        assert clone is not message
        assert type(clone) is cls


@classes
def test_every_attribute_is_described(cls):
    described = inspect.getdoc(cls).partition("Attributes:")[2]
    for field in dataclasses.fields(cls):
        assert f"{field.name}:" in described or f"{field.name}, " in described


@classes
def test_type_hints_can_be_resolved(cls):
    assert set(typing.get_type_hints(cls)) == {field.name for field in dataclasses.fields(cls)}
    assert inspect.signature(cls, eval_str=True).parameters


def test_a_repr_shows_every_field():
    assert repr(build(CancelRequest)) == (
        "CancelRequest(protocol_version='2', job_id='j', request_id=None, hard_kill=False)"
    )


def test_messages_match_patterns():
    match build(ExecutionOutcome):
        case ExecutionOutcome(status="error", error=ExecutionError(message=text)):
            assert text == "m"
        case _:
            pytest.fail("no pattern matched")


def test_params_default_to_a_new_dict():
    one, other = (
        ExecutionRequest(
            request_id="r", job_id="j", function_name="f", context=build(ExecutionContext)
        )
        for _ in range(2)
    )
    assert one.params == {}
    assert one.params is not other.params


def test_a_message_that_contains_itself_is_collected():
    import gc

    class Mark:
        gone = False

        def __del__(self):
            Mark.gone = True

    message = build(ExecutionRequest)
    message.params = {"loop": message, "mark": Mark()}
    del message
    gc.collect()
    assert Mark.gone


def test_a_success_is_the_same_as_by_the_constructor():
    assert ExecutionOutcome.success("j", "r", [1]) == ExecutionOutcome(
        job_id="j", request_id="r", status=OutcomeStatus.SUCCESS, result=[1]
    )


def test_a_success_of_a_subclass_has_the_fields_of_the_subclass():
    @dataclasses.dataclass(slots=True, kw_only=True)
    class Derived(ExecutionOutcome):
        host: str = "h"

    outcome = Derived.success("j", "r", [1])
    assert type(outcome) is Derived
    assert (outcome.result, outcome.host) == ([1], "h")


@pytest.mark.parametrize(
    ("status", "error_type", "expected"),
    [
        ("success", None, "success"),
        ("retry", None, "retry_after"),
        ("timeout", "timeout", "timeout"),
        ("error", None, "failure"),
        ("error", "mine", "failure"),
        ("error", "timeout", "failure"),
        ("error", "cancelled", "cancelled"),
        ("error", "handler_not_found", "handler_not_found"),
    ],
)
def test_the_type_of_an_outcome_follows_from_status_and_error(status, error_type, expected):
    error = ExecutionError(message="m", type=error_type)
    assert ExecutionOutcome(status=status, error=error).type is OutcomeType(expected)


def test_an_outcome_with_another_status_has_no_type():
    assert ExecutionOutcome(status="error").type is OutcomeType.FAILURE
    with pytest.raises(ValueError, match="'failed' is not a valid OutcomeStatus"):
        _ = ExecutionOutcome(status="failed").type
