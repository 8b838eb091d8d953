"""Python code that runs in the middle of a call: the garbage collector, __del__, threads, fork.

A crash would end pytest, so each scenario runs in a new interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PRELUDE = """
import ctypes, gc, json, os, sys, threading, weakref
from datetime import datetime, timezone
if NO_ORJSON:
    sys.modules["orjson"] = None
import rrq_fastwire as wire
from rrq_fastwire import CancelRequest, ExecutionContext, ExecutionOutcome, ExecutionRequest

NOON = datetime(2025, 1, 2, 12, 0, 0, tzinfo=timezone.utc)

def context(**fields):
    return ExecutionContext(
        **{"job_id": "j", "attempt": 1, "enqueue_time": NOON, "queue_name": "q"} | fields
    )

def request(**fields):
    return ExecutionRequest(
        **{"request_id": "r" * 8, "job_id": "j", "function_name": "f", "context": context()}
        | fields
    )
"""


@pytest.fixture(params=["0", "1"], ids=["c", "py"])
def run(request):
    """Runs a script in a new interpreter, with one implementation, and returns what it prints."""
    if request.param == "0":
        pytest.importorskip(
            "rrq_fastwire._c", reason="the compiled implementation is not built here"
        )

    def run(script, orjson=True, before=""):
        code = f"{before}\nNO_ORJSON = {not orjson}\n{PRELUDE}{textwrap.dedent(script)}"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "RRQ_FASTWIRE_PURE": request.param},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return run


@pytest.mark.parametrize(
    "build",
    [
        'CancelRequest(job_id="j", request_id=chain)',
        "request(context=chain)",
        'request(params={"next": chain})',
        "context(trace_context=chain)",
        'ExecutionOutcome.success("j", "r", [chain])',
        'ExecutionOutcome.failure("j", "r", "m", details=chain)',
    ],
)
def test_a_long_chain_of_messages_is_freed(run, build):
    run(
        f"""
        gc.disable()
        chain = None
        # With a recursion for each, C's stack of 8 MiB would be too small: a call takes 48 bytes.
        for _ in range(200_000):
            chain = {build}
        del chain
        """
    )


def test_a_decoder_that_is_being_collected_can_be_used(run):
    """The collector does not track code objects, so a callback runs when it frees one."""
    printed = run(
        """
        class Decoder(wire.MessageDecoder):
            pass

        class Node:
            pass

        def use(_):
            decoder = ctypes.cast(address, ctypes.py_object).value
            if vars(decoder):
                return  # it is not cleared yet
            try:
                list(decoder.feed(frame[10:]))
                decoder.get_buffer(-1)[:4] = frame[:4]
                list(decoder.buffer_updated(4))
                decoder.feed_eof()
            except (wire.FrameError, AttributeError):  # a cleared Python object has no attributes
                pass
            print("used")

        gc.collect()
        gc.disable()  # so that objects are cleared in the order of their creation
        frame = wire.encode_frame(CancelRequest(job_id="j"))
        nodes = [Node() for _ in range(20)]
        decoder = Decoder()
        list(decoder.feed(frame[:10]))
        nodes += [Node() for _ in range(20)]
        for node in nodes:
            node.code = compile("0", "", "eval")
            node.decoder = decoder
            node.me = node
        decoder.nodes = nodes
        kept = [weakref.ref(node.code, use) for node in nodes]
        address = id(decoder)
        del decoder, node, nodes
        gc.collect()
        """
    )
    assert "used" in printed


WRITE_MEANWHILE = """
sent = request(params={"items": [[{"a": 1}] for _ in range(20)]})
frame = wire.encode_frame(sent)
at = frame.index(b"rrrrrrrr")
"""


@pytest.mark.parametrize("orjson", [True, False], ids=["orjson", "json"])
@pytest.mark.parametrize("how", ["bytearray", "memoryview", "get_buffer"])
def test_memory_that_a_callback_of_the_collector_writes_to_is_copied_first(run, how, orjson):
    run(
        WRITE_MEANWHILE
        + f"""
for collection in (1, 2, 3, 5, 20):
    decoder = wire.MessageDecoder()
    if {how!r} == "get_buffer":
        memory = decoder.get_buffer(-1)
        memory[:len(frame)] = frame
        decode = lambda: next(decoder.buffer_updated(len(frame)))
    else:
        memory = bytearray(frame)
        given = memory if {how!r} == "bytearray" else memoryview(memory)
        decode = lambda: wire.decode_frame(given)

    collections = 0

    def write(phase, _):
        global collections
        collections += phase == "start"
        if collections == collection:
            memory[at:at + 8] = b"\\xff" * 8

    gc.callbacks.append(write)
    gc.set_threshold(1)
    try:
        message = decode()
    except wire.MessageError as error:  # the bytes changed before the call copied them
        message = sent
        assert str(error).startswith("not JSON")
    gc.set_threshold(0)
    gc.callbacks.clear()
    assert message == sent, (collection, message)
""",
        orjson=orjson,
    )


@pytest.mark.parametrize("orjson", [True, False], ids=["orjson", "json"])
def test_a_decoder_can_be_used_by_a_callback_of_the_collector(run, orjson):
    printed = run(
        """
        frames = [
            wire.encode_frame(request(request_id=str(n), params={"items": [[{"a": n}]] * 20}))
            for n in range(200)
        ]
        decoder = wire.MessageDecoder()
        taken = []

        def enter(phase, _):
            try:
                for message in decoder:
                    taken.append(message.request_id)
                    if len(taken) % 3 == 0:
                        break
                decoder.buffered
            except RuntimeError as error:
                assert str(error) == "another call is using the decoder", error

        gc.callbacks.append(enter)
        gc.set_threshold(5)
        stream = b"".join(frames)
        for at in range(0, len(stream), 999):
            decoder.feed(stream[at:at + 999])
            taken += [message.request_id for message in decoder]
        gc.set_threshold(0)
        gc.callbacks.clear()
        taken += [message.request_id for message in decoder]
        decoder.feed_eof()
        print(sorted(map(int, taken)) == list(range(200)))
        """,
        orjson=orjson,
    )
    assert printed == "True\n"


def test_a_collection_in_the_middle_of_a_backlog_loses_and_repeats_nothing(run):
    """CPython keeps one unused slice object. The test takes it, so that a new one is allocated."""
    printed = run(
        """
        frames = [str(n).encode() * 50 for n in range(40)]
        stream = b"".join(wire.pack_frame(frame) for frame in frames)
        kept = [slice(1), slice(2)]
        for threshold in range(1, 30):
            decoder = wire.FrameDecoder()
            decoder.feed(stream[:-1])
            decoder.feed(stream[-1:])
            taken = []

            def drain(phase, _):
                for payload in decoder:
                    taken.append(payload)
                    if len(taken) % 4 == 0:
                        break

            gc.callbacks.append(drain)
            gc.set_threshold(threshold)
            for payload in decoder:
                taken.append(payload)
            gc.set_threshold(0)
            gc.callbacks.clear()
            taken += list(decoder)
            assert sorted(taken) == sorted(frames), (threshold, taken)
        print("all")
        """
    )
    assert printed == "all\n"


@pytest.mark.parametrize("orjson", [True, False], ids=["orjson", "json"])
def test_a_value_is_written_as_it_was_checked(run, orjson):
    """A callback of the collector puts raw JSON into the value after the check."""
    if orjson:
        pytest.importorskip("orjson", reason="orjson.Fragment is orjson's")
    run(
        """
        class Raw:
            pass

        raw = Raw()
        if not NO_ORJSON:
            import orjson
            raw = orjson.Fragment(b"BROKEN")

        for collection in range(1, 40):
            details = [1, [2, {"a": 3}]]
            failure = ExecutionOutcome.failure("j", "r", "m", details=details)
            count = 0

            def spoil(phase, _):
                global count
                count += phase == "start"
                if count == collection:
                    details[1].append(raw)

            gc.callbacks.append(spoil)
            gc.set_threshold(1)
            try:
                frame = wire.encode_frame(failure)
            except wire.EncodeError:
                frame = b""
            gc.set_threshold(0)
            gc.callbacks.clear()
            assert b"BROKEN" not in frame, collection
        """,
        orjson=orjson,
    )


def test_decoding_in_a_finalizer_while_a_deep_document_is_decoded(run):
    printed = run(
        """
        deep = wire.encode_frame(request(params={"a": [[]] * 300}))
        done = []

        class Trap:
            def __init__(self):
                self.me = self

            def __del__(self):
                done.append(wire.decode_frame(deep).job_id)

        gc.set_threshold(5)
        for _ in range(50):
            Trap()
            wire.decode_frame(deep)
        gc.collect()
        print(len(done))
        """,
        orjson=False,
    )
    assert printed == "50\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_child_decodes_after_a_fork_in_the_middle_of_decoding(run):
    run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn about threads
        sys.setswitchinterval(1e-6)
        deep = wire.encode_frame(request(params={"a": [[]] * 3000}))
        ended = threading.Event()

        def decode():
            while not ended.is_set():
                wire.decode_frame(deep)

        thread = threading.Thread(target=decode)
        thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                wire.decode_frame(deep)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        ended.set()
        thread.join()
        """,
        orjson=False,
    )


def test_the_recursion_limit_allows_a_document_of_1024_levels(run):
    run(
        """
        for levels, valid in ((1022, True), (1023, False)):
            result = "[" * levels + "]" * levels
            payload = f'{{"type":"response","payload":{{"status":"success","result":{result}}}}}'
            try:
                message = wire.decode_payload(payload.encode())
            except wire.MessageError as error:
                assert not valid
                assert str(error) == "not JSON: depth limit exceeded"
            else:
                assert valid
        """,
        orjson=False,
    )


HASHING_ORJSON = """
import json, sys, types

def loads(data):
    assert hash(data) == hash(bytes(bytearray(data)))
    return json.loads(bytes(data))

sys.modules["orjson"] = types.SimpleNamespace(
    loads=loads, dumps=lambda value: json.dumps(value).encode(), __version__="0"
)
"""


def test_bytes_that_the_json_library_got_are_never_reused(run):
    """A bytes object caches its hash. If the codec wrote to it again, the hash would be wrong."""
    run(
        """
        for n in range(50):
            success = ExecutionOutcome.success("j", "r", {"number": n, "text": "x" * n})
            assert wire.decode_frame(wire.encode_frame(success)) == success
        """,
        before=HASHING_ORJSON,
    )


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="None is immortal since 3.12")
def test_get_buffer_keeps_no_reference_to_none(run):
    printed = run(
        """
        decoder = wire.MessageDecoder()
        def use():
            for _ in range(10_000):
                decoder.get_buffer(-1)
                decoder.buffer_updated(0)
        use()
        before = sys.getrefcount(None)
        use()
        print(abs(sys.getrefcount(None) - before) < 100)
        """
    )
    assert printed == "True\n"


NO_MEMORY = """
try:
    import _testcapi
except ImportError:
    print("no _testcapi")
    sys.exit()

def survives(call):
    for start in range(400):
        _testcapi.set_nomemory(start, start + 1)
        try:
            call()
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()
    call()

message = request(params={"a": [1, {"b": "text"}]}, context=context(trace_context={"k": "v"}))
failure = ExecutionOutcome.failure("j", "r", "m", details=[1])
success = ExecutionOutcome.success("j", "r", {"a": [1]})
frame = wire.encode_frame(message)
other = wire.pack_frame(json.dumps(json.loads(frame[4:])).encode())
answer = wire.encode_frame(success)
cancel = wire.encode_frame(CancelRequest(job_id="j"))
decoders = iter([wire.MessageDecoder() for _ in range(1000)])

def stream():
    decoder = next(decoders)
    fed = b"".join((frame, answer, other))
    for at in range(0, len(fed), 100):
        decoder.feed(fed[at:at + 100])
        list(decoder)
"""


@pytest.mark.parametrize(
    "call",
    [
        "lambda: repr(message)",
        "lambda: wire.decode_frame(frame)",
        "lambda: wire.decode_frame(other)",
        "lambda: wire.decode_frame(answer)",
        "lambda: wire.decode_frame(cancel)",
        "lambda: wire.decode_frame(wire.encode_frame(failure))",
        "lambda: wire.encode_frame(message)",
        "lambda: wire.encode_frame(failure)",
        "lambda: wire.encode_frame(success)",
        "stream",
    ],
)
@pytest.mark.parametrize("run", ["0"], ids=["c"], indirect=True)
def test_a_failed_allocation_is_a_memory_error(run, call):
    """This uses the standard library's json, because orjson crashes when one of its allocations fails.

    The pure implementation is left out, because only CPython allocates in it.
    """
    if "encode_frame" in call and sys.version_info >= (3, 12):
        pytest.skip(
            "the json module crashes when an allocation of encode() fails, since CPython 3.12"
        )
    if "repr" not in call and sys.version_info >= (3, 13):
        pytest.skip("the json module of CPython 3.13 crashes when an allocation fails")
    printed = run(NO_MEMORY + f"\nsurvives({call})", orjson=False)
    if printed:
        pytest.skip("this interpreter has no _testcapi")
