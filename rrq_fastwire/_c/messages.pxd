# The fields stand here in any order: names, types and defaults are read from the pure twin's classes,
# where the wire table is.

cdef class Message:
    pass


cdef class ExecutionContext(Message):
    cdef public object job_id
    cdef public object attempt
    cdef public object enqueue_time
    cdef public object queue_name
    cdef public object deadline
    cdef public object trace_context
    cdef public object correlation_context
    cdef public object worker_id


cdef class ExecutionRequest(Message):
    cdef public object protocol_version
    cdef public object request_id
    cdef public object job_id
    cdef public object function_name
    cdef public object params
    cdef public object context


cdef class ExecutionError(Message):
    cdef public object message
    cdef public object type
    cdef public object code
    cdef public object details


cdef class ExecutionOutcome(Message):
    cdef public object job_id
    cdef public object request_id
    cdef public object status
    cdef public object result
    cdef public object error
    cdef public object retry_after_seconds


cdef class CancelRequest(Message):
    cdef public object protocol_version
    cdef public object job_id
    cdef public object request_id
    cdef public object hard_kill
