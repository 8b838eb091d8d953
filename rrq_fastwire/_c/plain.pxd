from cpython.object cimport PyObject

cdef extern from "Python.h":
    bint PyDict_Next(PyObject* dict, Py_ssize_t* pos, PyObject** key, PyObject** value)
    Py_ssize_t PyDict_Size(PyObject*)
    bint PyUnicode_CheckExact(PyObject*)
    bint PyLong_CheckExact(PyObject*)
    bint PyFloat_CheckExact(PyObject*)
    bint PyBool_Check(PyObject*)
    bint PyDict_CheckExact(PyObject*)
    bint PyList_CheckExact(PyObject*)
    bint PyTuple_CheckExact(PyObject*)
    Py_ssize_t PySequence_Fast_GET_SIZE(PyObject*)
    PyObject** PySequence_Fast_ITEMS(PyObject*)

cdef enum: MAX_LEVELS = 128     # more than MAX_NESTING


cdef struct Level:
    # A dict, or the items of a list or tuple, and the position of the next item.
    PyObject* container
    PyObject** items            # NULL for a dict
    Py_ssize_t size, pos


cdef inline bint is_leaf(PyObject* item) noexcept:
    return (
        PyUnicode_CheckExact(item)
        or PyLong_CheckExact(item)
        or PyFloat_CheckExact(item)
        or PyBool_Check(item)
        or item is <PyObject*>None
    )


cdef inline bint enter(PyObject* container, Level* level) noexcept:
    """Return whether `container` is exactly a dict, list or tuple; if so, begin its iteration."""
    level.container = container
    level.items = NULL
    level.pos = 0
    if PyDict_CheckExact(container):
        level.size = PyDict_Size(container)
        return True
    if PyList_CheckExact(container) or PyTuple_CheckExact(container):
        level.items = PySequence_Fast_ITEMS(container)
        level.size = PySequence_Fast_GET_SIZE(container)
        return True
    return False


cdef inline PyObject* next_container(Level* level) noexcept:
    """Return the next item that is not a leaf; NULL at the end."""
    cdef PyObject* item = NULL
    if level.items is NULL:
        while PyDict_Next(level.container, &level.pos, NULL, &item):
            if not is_leaf(item):
                return item
    else:
        while level.pos < level.size:
            item = level.items[level.pos]
            level.pos += 1
            if not is_leaf(item):
                return item
    return NULL


cdef inline bint is_plain(PyObject* item, int levels, Py_ssize_t left) noexcept:
    """Do what _is_plain() of `_json` does. No Python code runs, so borrowed references are safe."""
    cdef Level stack[MAX_LEVELS]
    cdef int depth = 0
    if is_leaf(item):
        return True
    while True:
        if depth == levels or depth == MAX_LEVELS or not enter(item, &stack[depth]):
            return False
        left -= stack[depth].size
        if left < 0:
            return False
        item = next_container(&stack[depth])
        depth += 1
        while item is NULL:
            depth -= 1
            if depth == 0:
                return True
            item = next_container(&stack[depth - 1])
