"""The twins have one surface: what can be told apart from outside is which one runs."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
import types
from datetime import datetime, timezone

import pytest

import rrq_fastwire
import rrq_fastwire._py as py

c = pytest.importorskip("rrq_fastwire._c", reason="the compiled twin is not built here")

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)
CLASSES = [
    "ExecutionContext",
    "ExecutionRequest",
    "ExecutionError",
    "ExecutionOutcome",
    "CancelRequest",
    "FrameDecoder",
    "MessageDecoder",
]
MESSAGES = CLASSES[:5]
FUNCTIONS = ["decode_frame", "encode_frame", "pack_frame"]


def build(twin, name):
    context = twin.ExecutionContext(job_id="j", attempt=1, enqueue_time=NOON, queue_name="q")
    return {
        "ExecutionContext": context,
        "ExecutionRequest": twin.ExecutionRequest(
            request_id="r", job_id="j", function_name="f", params={"a": [1]}, context=context
        ),
        "ExecutionError": twin.ExecutionError(message="m"),
        "ExecutionOutcome": twin.ExecutionOutcome.failure("j", "r", "m", details=[1]),
        "CancelRequest": twin.CancelRequest(job_id="j"),
    }[name]


def public(namespace):
    return sorted(name for name in dir(namespace) if not name.startswith("_"))


def arguments(callable_):
    """Names, kinds and defaults; the pure twin has annotations besides."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(callable_).parameters.values()
    ]


def test_the_modules_have_the_same_names():
    assert public(c) == public(py)
    for name in ("frames", "messages"):
        assert getattr(c, name).__all__ == getattr(py, name).__all__
    for name in c.frames.__all__ + c.messages.__all__:
        mine, other = getattr(c, name), getattr(py, name)
        if not isinstance(other, (type, types.UnionType)) and not callable(other):
            assert mine == other
        assert getattr(rrq_fastwire, name) in (mine, other)
    assert [each.__name__ for each in c.RunnerMessage.__args__] == [
        each.__name__ for each in py.RunnerMessage.__args__
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_same_signatures_and_docstrings(name):
    assert arguments(getattr(c, name)) == arguments(getattr(py, name))
    assert inspect.getdoc(getattr(c, name)) == inspect.getdoc(getattr(py, name))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_have_the_same_surface(name):
    mine, other = getattr(c, name), getattr(py, name)
    assert public(mine) == public(other)
    assert arguments(mine) == arguments(other)
    assert inspect.getdoc(mine) == inspect.getdoc(other)
    assert mine.__name__ == other.__name__
    assert getattr(mine, "__match_args__", None) == getattr(other, "__match_args__", None)
    for attribute in public(other):
        if callable(getattr(other, attribute)):
            assert arguments(getattr(mine, attribute)) == arguments(getattr(other, attribute))
        described = inspect.getdoc(getattr(mine, attribute)) or ""
        if not isinstance(inspect.getattr_static(other, attribute), types.MemberDescriptorType):
            assert described == inspect.getdoc(getattr(other, attribute))
    for twin in (mine, other):
        with pytest.raises(TypeError):
            type("Derived", (twin,), {}) if name in MESSAGES else twin("16")


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_values(name):
    for twin in (c, py):
        one, other = build(twin, name), build(twin, name)
        field = next(iter(inspect.signature(type(one)).parameters))
        assert one == other
        assert (one != other) is False
        assert one != "text"
        with pytest.raises(TypeError, match="unhashable"):
            hash(one)
        setattr(other, field, "changed")
        assert one != other
        with pytest.raises(AttributeError):
            one.unknown = 1
        assert not hasattr(one, "__dict__")
    assert build(c, name) != build(py, name)
    assert repr(build(c, name)) == repr(build(py, name))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_field_of_the_compiled_twin_cannot_be_deleted(name):
    """The pure twin's can: to refuse it, every assignment there would take a detour."""
    message = build(c, name)
    field = next(iter(inspect.signature(type(message)).parameters))
    with pytest.raises(AttributeError, match=f"^attributes of {name} cannot be deleted$"):
        delattr(message, field)
    assert message == build(c, name)


@pytest.mark.parametrize("name", MESSAGES)
def test_constructors_refuse_the_same_arguments(name):
    for twin in (c, py):
        cls = getattr(twin, name)
        values = {
            field: getattr(build(twin, name), field) for field in inspect.signature(cls).parameters
        }
        assert cls(**values) == build(twin, name)
        for wrong in (("x",), ({"unknown": 1} | values)), ((), {**values, "unknown": 1}), ((), {}):
            with pytest.raises(TypeError):
                cls(*wrong[0], **wrong[1])


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("twin", [c, py], ids=["c", "py"])
def test_messages_copy_and_pickle(twin, name):
    message = build(twin, name)
    for clone in (copy.copy(message), copy.deepcopy(message), message.__replace__()):
        assert clone == message
        assert clone is not message
        assert type(clone) is type(message)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        loaded = pickle.loads(pickle.dumps(message, protocol))
        assert loaded == build(rrq_fastwire, name)
        assert type(loaded) is getattr(rrq_fastwire, name)
    if name == "ExecutionRequest":
        assert copy.copy(message).params is message.params
        assert copy.deepcopy(message).params is not message.params
        assert copy.deepcopy(message).context is not message.context
        assert message.__replace__(job_id="other").job_id == "other"


@pytest.mark.parametrize("pure", ["0", "1"])
def test_a_pickle_of_one_twin_loads_in_a_process_of_the_other(pure):
    code = (
        "import pickle, sys, rrq_fastwire\n"
        "message = pickle.load(sys.stdin.buffer)\n"
        "assert type(message) is rrq_fastwire.ExecutionRequest, type(message)\n"
        "print(repr(message))"
    )
    for twin in (c, py):
        message = build(twin, "ExecutionRequest")
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=pickle.dumps(message),
            env=os.environ | {"RRQ_FASTWIRE_PURE": pure},
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode().strip() == repr(message)


def test_decoders_do_not_pickle(wire):
    for cls in (wire.FrameDecoder, wire.MessageDecoder):
        for call in (pickle.dumps, copy.copy):
            with pytest.raises(TypeError, match=f"cannot pickle '{cls.__name__}' object"):
                call(cls())


def test_messages_match_patterns(wire):
    match build(wire, "ExecutionOutcome"):
        case wire.ExecutionOutcome(status="error", error=wire.ExecutionError(message=text)):
            assert text == "m"
        case _:
            pytest.fail("no pattern matched")
    assert wire.CancelRequest.__match_args__ == ()


def test_a_message_that_holds_itself_is_collected(wire):
    import gc

    class Mark:
        gone = False

        def __del__(self):
            Mark.gone = True

    message = build(wire, "ExecutionRequest")
    message.params = {"loop": message, "mark": Mark()}
    del message
    gc.collect()
    assert Mark.gone


def test_the_statuses_are_texts_as_well(wire):
    assert [*wire.OutcomeStatus] == ["success", "retry", "timeout", "error"]
    outcome = wire.ExecutionOutcome(status="error", error=wire.ExecutionError(message="m"))
    assert outcome.type is wire.OutcomeType.FAILURE
    assert wire.ExecutionOutcome(status="error").type is wire.OutcomeType.FAILURE
    assert wire.decode_frame(wire.encode_frame(outcome)).status is wire.OutcomeStatus.ERROR
