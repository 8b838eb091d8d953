# What the translated generic codec knows of its types; `_generic.py` itself stays plain Python. Half of
# its time goes into these two methods, and a sixth of that is saved here.
cdef class _Schema:
    cdef readonly type cls
    cdef readonly list rules
    cdef list _reading, _writing
    cpdef object read(self, dict source)
    cpdef dict write(self, object message)
