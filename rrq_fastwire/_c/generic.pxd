# The types of `_generic.py`, which stays plain Python. They save a sixth of the time of the two loops.
cdef class _Schema:
    cdef readonly type cls
    cdef readonly list rules
    cdef list _reading, _writing
    cpdef object read(self, dict source)
    cpdef dict write(self, object message)
