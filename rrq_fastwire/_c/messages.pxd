# The fields in the order of the wire, as in the pure twin's classes, where the wire table is; types,
# defaults and the attributes that Python sees come from there.

cdef class Message:
    pass


cdef class ExecutionContext(Message):
    cdef object job_id
    cdef object attempt
    cdef object enqueue_time
    cdef object queue_name
    cdef object deadline
    cdef object trace_context
    cdef object correlation_context
    cdef object worker_id


cdef class ExecutionRequest(Message):
    cdef object protocol_version
    cdef object request_id
    cdef object job_id
    cdef object function_name
    cdef object params
    cdef object context


cdef class ExecutionError(Message):
    cdef object message
    cdef object type
    cdef object code
    cdef object details


cdef class ExecutionOutcome(Message):
    cdef object job_id
    cdef object request_id
    cdef object status
    cdef object result
    cdef object error
    cdef object retry_after_seconds


cdef class CancelRequest(Message):
    cdef object protocol_version
    cdef object job_id
    cdef object request_id
    cdef object hard_kill
