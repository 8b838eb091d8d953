"""compat does the same as rrq.protocol, and install() makes rrq use it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import pytest

from rrq_fastwire import compat

from .stock import HAS_RRQ, needs_rrq, registry, rrq, stock_server

MODULES = [
    pytest.param(HAS_RRQ and rrq.protocol, id="rrq", marks=needs_rrq),
    pytest.param(compat, id="compat"),
]


@pytest.fixture
def installed():
    compat.install()
    yield
    compat.uninstall()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"job_id": "é😀", "result": [1, 2.5, None, True, "\n"], "nested": {"a": {"b": []}}},
        {2: 2, None: 3, True: 4, 1.5: 5},
        {"pair": (1, 2), "big": 2**70},
    ],
    ids=str,
)
def test_a_message_encodes_to_the_same_values(module, payload):
    frame = module.encode_message("response", payload)
    assert type(frame) is bytes
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    expected = {"type": "response", "payload": json.loads(json.dumps(payload))}
    assert json.loads(frame[4:]) == expected


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("payload", "error"),
    [({"a": object()}, TypeError), ({"a": {1}}, TypeError), ({(1,): 2}, TypeError)],
)
def test_values_without_a_json_form_raise_type_error_as_in_rrq(module, payload, error):
    with pytest.raises(error):
        module.encode_message("response", payload)


def test_a_payload_that_contains_itself_raises_value_error():
    loop = {}
    loop["loop"] = loop
    with pytest.raises(ValueError, match="Circular"):
        compat.encode_message("response", loop)


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "result",
    ["\ud800", 10**400, "x" * 17_000_000, nested(126), nested(50_000)],
    ids=lambda _: "",
)
def test_values_that_would_end_the_connection_raise_value_error(result):
    with pytest.raises(ValueError, match=r"surrogate|308 digits|16777216|nested too deep"):
        compat.encode_message("response", {"status": "success", "result": result})


def test_nan_is_sent_as_null():
    assert json.loads(compat.encode_message("response", {"a": float("nan")})[4:])["payload"] == {
        "a": None
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_message_decodes_to_its_type_and_payload(module):
    data = b'{"type": "cancel", "payload": {"a": [1, 2.5, "\\u00e9", null, true]}, "more": 1}'
    assert module.decode_message(data) == ("cancel", {"a": [1, 2.5, "é", None, True]})


@needs_rrq
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b'{"payload": {}}',
        b'{"type": "other", "payload": {}}',
        b'{"type": "request"}',
        b'{"type": "request", "payload": []}',
    ],
)
def test_an_invalid_message_raises_value_error(module, data):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (rrq has its own texts)
        module.decode_message(data)
    if b'"' in data or b"null" in data or b"[" in data:
        with pytest.raises(ValueError) as theirs:  # noqa: PT011
            rrq.protocol.decode_message(data)
        assert str(caught.value) == str(theirs.value)


def read(module, data):
    async def reading():
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await module.read_message(reader)

    return asyncio.run(reading())


@pytest.mark.parametrize("module", MODULES)
def test_read_message_gives_a_message_none_at_the_end_or_an_error(module):
    frame = module.encode_message("request", {"a": 1})
    assert read(module, frame + b"rest") == ("request", {"a": 1})
    assert read(module, b"") is None
    for half in (frame[:1], frame[:3], frame[:4], frame[:-1]):
        with pytest.raises(asyncio.IncompleteReadError):
            read(module, half)
    for broken in (b"\0\0\0\0", b"\x01\0\0\x01", b"\0\0\0\x02[]", b"\0\0\0\x01{"):
        with pytest.raises(ValueError):  # noqa: PT011
            read(module, broken + b"x")


class Writer:
    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(data)

    async def drain(self):
        self.calls.append("drain")


@pytest.mark.parametrize("module", MODULES)
def test_write_message_writes_one_frame_and_drains(module):
    writer = Writer()
    asyncio.run(module.write_message(writer, "cancel", {"a": 1}))
    frame, drained = writer.calls
    assert module.decode_message(frame[4:]) == ("cancel", {"a": 1})
    assert drained == "drain"


@needs_rrq
def test_install_replaces_names_in_imported_modules_and_uninstall_restores_them():
    names = ["decode_message", "encode_message", "read_message", "write_message"]
    originals = {name: getattr(rrq.protocol, name) for name in names}
    compat.install()
    try:
        compat.install()
        for name in names:
            assert getattr(rrq.protocol, name) is getattr(compat, name)
        assert rrq.runner_runtime.read_message is compat.read_message
        assert rrq.runner_runtime.write_message is compat.write_message
    finally:
        compat.uninstall()
    compat.uninstall()
    for name in names:
        assert getattr(rrq.protocol, name) is originals[name]
    assert rrq.runner_runtime.read_message is originals["read_message"]
    assert rrq.runner_runtime.write_message is originals["write_message"]


@needs_rrq
def test_uninstall_restores_modules_that_were_imported_after_install():
    code = (
        "from rrq_fastwire import compat; compat.install()\n"
        "import rrq.runner_runtime, rrq.protocol\n"
        "assert rrq.runner_runtime.read_message is compat.read_message\n"
        "compat.uninstall()\n"
        "assert rrq.runner_runtime.read_message is rrq.protocol.read_message\n"
        "assert rrq.protocol.read_message is not compat.read_message"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_rrq_only_install_raises_import_error():
    code = (
        "import sys; sys.modules['rrq'] = None\n"
        "from rrq_fastwire import compat\n"
        "try: compat.install()\n"
        "except ImportError: print('no rrq')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "no rrq\n"


@needs_rrq
@pytest.mark.usefixtures("installed")
def test_the_stock_runner_runs_a_job_with_this_codec_installed(wire):
    async def echo(request):
        return request.params

    async def running():
        async with stock_server(registry({"echo": echo})) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(wire.encode_frame(job))
            outcome = next(wire.MessageDecoder().feed(await reader.read(65536)))
            writer.close()
            await writer.wait_closed()
        return outcome

    job = next(wire.MessageDecoder().feed(REQUEST))
    assert asyncio.run(running()) == wire.ExecutionOutcome.success("j", "r", {"a": [1, "é"]})


REQUEST = compat.encode_message(
    "request",
    {
        "request_id": "r",
        "job_id": "j",
        "function_name": "echo",
        "params": {"a": [1, "é"]},
        "context": {
            "job_id": "j",
            "attempt": 1,
            "enqueue_time": "2025-01-02T12:00:00Z",
            "queue_name": "q",
        },
    },
)
