# C types for `_generic.py`, which stays plain Python: they save a sixth of read() and write().
cdef class _Schema:
    cdef readonly type cls
    cdef readonly list rules
    cdef list _reading, _writing
    cpdef object read(self, dict source)
    cpdef dict write(self, object message)
