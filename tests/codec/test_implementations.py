"""Both implementations have the same names, signatures and docstrings."""

from __future__ import annotations

import copy
import inspect
import pickle
import types

import pytest

import rrq_fastwire
import rrq_fastwire._py as py
from rrq_fastwire import messages

c = pytest.importorskip("rrq_fastwire._c", reason="the compiled implementation is not built here")

CLASSES = ["FrameDecoder", "MessageDecoder"]
FUNCTIONS = ["decode_frame", "decode_payload", "encode_frame", "encode_payload", "pack_frame"]


def public(namespace):
    return sorted(name for name in dir(namespace) if not name.startswith("_"))


def arguments(callable_):
    """Names, kinds and defaults. Only the pure implementation has annotations besides."""
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in inspect.signature(callable_).parameters.values()
    ]


def test_the_modules_export_the_same_names():
    for name in ("frames", "codec"):
        assert getattr(c, name).__all__ == getattr(py, name).__all__
    for name in (*messages.__all__, "FRAME_HEADER_LEN", "MAX_FRAME_SIZE"):
        assert getattr(c, name) == getattr(py, name) == getattr(rrq_fastwire, name)
    for name in CLASSES + FUNCTIONS:
        assert getattr(rrq_fastwire, name) in (getattr(c, name), getattr(py, name))
    assert (c.IMPLEMENTATION, py.IMPLEMENTATION) == ("cython", "python")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_have_the_same_signatures_and_docstrings(name):
    assert arguments(getattr(c, name)) == arguments(getattr(py, name))
    assert inspect.getdoc(getattr(c, name)) == inspect.getdoc(getattr(py, name))


@pytest.mark.parametrize("name", CLASSES)
def test_decoders_have_the_same_surface(name):
    compiled, pure = getattr(c, name), getattr(py, name)
    assert public(compiled) == public(pure)
    assert arguments(compiled) == arguments(pure)
    assert inspect.getdoc(compiled) == inspect.getdoc(pure)
    assert compiled.__name__ == pure.__name__
    for attribute in public(pure):
        if callable(getattr(pure, attribute)):
            assert arguments(getattr(compiled, attribute)) == arguments(getattr(pure, attribute))
        if not isinstance(inspect.getattr_static(pure, attribute), types.MemberDescriptorType):
            assert inspect.getdoc(getattr(compiled, attribute)) == inspect.getdoc(
                getattr(pure, attribute)
            )


@pytest.mark.parametrize("name", CLASSES)
def test_decoders_do_not_pickle(wire, name):
    cls = getattr(wire, name)
    for call in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match=f"cannot pickle '{name}' object"):
            call(cls())


@pytest.mark.parametrize("name", CLASSES)
def test_a_decoder_refuses_a_limit_that_is_not_an_int(wire, name):
    with pytest.raises(TypeError, match="max_frame_size must be an int, got str"):
        getattr(wire, name)("16")
