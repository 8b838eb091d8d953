# The layout of a request as the orchestrator writes it: every key in its place, no spaces, texts
# without escapes. These functions read bytes and touch no Python object. `at` points to the next byte,
# `end` after the last. Each take_...() returns whether it found its part; if so, `at` is now after it.

from libc.stdint cimport uint64_t

cdef extern from "scan.h":
    bint FREE_THREADED
    const unsigned char* plain_end(const unsigned char* at, const unsigned char* end) noexcept
    const unsigned char* last_brace(const unsigned char* at, const unsigned char* end) noexcept
    bint skip(const unsigned char** at, const unsigned char* end, const char* literal) noexcept

ctypedef const unsigned char* Octets

cdef struct Span:
    Octets start                # NULL stands for null
    Py_ssize_t size


cdef struct Moment:
    unsigned int year, month, day, hour, minute, second, microsecond


cdef struct RequestSpans:
    Span request_id, job_id, function_name
    Span params                 # any bytes, not yet checked
    Span context_job_id, queue_name, worker_id, trace_context, correlation_context
    uint64_t attempt
    Moment enqueue_time, deadline
    bint has_deadline


cdef inline bint take_text(Octets* at, Octets end, Span* text) noexcept:
    """Take plain text. The caller checks that a quote follows; otherwise the text is not all plain."""
    text.start = at[0]
    at[0] = plain_end(at[0], end)
    text.size = at[0] - text.start
    return True


cdef inline bint take_attempt(Octets* at, Octets end, uint64_t* number) noexcept:
    """Take an unsigned integer of 32 bits without leading zeros."""
    cdef Octets start = at[0]
    number[0] = 0
    while at[0] < end and c"0" <= at[0][0] <= c"9" and at[0] - start < 10:
        number[0] = number[0] * 10 + (at[0][0] - c"0")
        at[0] += 1
    return at[0] != start and number[0] <= 0xFFFFFFFF and (start[0] != c"0" or at[0] - start == 1)


cdef inline unsigned int two_digits(Octets at) noexcept:
    """Return the number of two digits; 100 if a byte is not a digit."""
    cdef unsigned int tens = <unsigned int>at[0] - c"0"
    cdef unsigned int ones = <unsigned int>at[1] - c"0"
    return 100 if tens > 9 or ones > 9 else 10 * tens + ones


cdef inline bint take_moment(Octets* at, Octets end, Moment* moment) noexcept:
    """Take a date-time such as 2026-11-24T03:13:36.570640729Z, with any fraction or none.

    Numbers may be out of range, for example where a byte is not a digit: datetime() rejects those.
    """
    cdef Octets text = at[0], fraction
    cdef unsigned int century, years, first, second, third
    if (end - text < 20 or text[4] != c"-" or text[7] != c"-" or text[10] != c"T"
            or text[13] != c":" or text[16] != c":"):
        return False
    century = two_digits(text)
    years = two_digits(text + 2)
    moment.year = 100 * century + years
    moment.month = two_digits(text + 5)
    moment.day = two_digits(text + 8)
    moment.hour = two_digits(text + 11)
    moment.minute = two_digits(text + 14)
    moment.second = two_digits(text + 17)
    moment.microsecond = 0
    if century > 99 or years > 99:
        return False
    text += 19
    if end - text >= 11 and text[0] == c"." and text[10] == c"Z":
        # Nine digits, as the orchestrator writes them, do not need the loop below.
        first, second, third = two_digits(text + 1), two_digits(text + 3), two_digits(text + 5)
        if first <= 99 and second <= 99 and third <= 99 and two_digits(text + 7) <= 99:
            if c"0" <= text[9] <= c"9":
                moment.microsecond = 10000 * first + 100 * second + third
                at[0] = text + 11
                return True
    if text[0] == c".":
        text += 1
        fraction = text
        while text < end and c"0" <= text[0] <= c"9":
            if text - fraction < 6:
                moment.microsecond = 10 * moment.microsecond + (text[0] - c"0")
            text += 1
        if text == fraction:
            return False
        for _ in range(text - fraction, 6):
            moment.microsecond *= 10
    if text == end or text[0] != c"Z":
        return False
    at[0] = text + 1
    return True


cdef inline bint take_strings(Octets* at, Octets end, Span* strings) noexcept:
    """Take an object whose keys and values are all plain text, or null."""
    cdef bint more
    strings.start = NULL
    if skip(at, end, b"null"):
        return True
    strings.start = at[0]
    more = skip(at, end, b'{"')
    if not more and not skip(at, end, b"{}"):
        return False
    while more:
        at[0] = plain_end(at[0], end)
        if not skip(at, end, b'":"'):
            return False
        at[0] = plain_end(at[0], end)
        more = skip(at, end, b'","')
        if not more and not skip(at, end, b'"}'):
            return False
    strings.size = at[0] - strings.start
    return True


cdef inline Octets find_context(Octets at, Octets end) noexcept:
    """Return where the last `,"context":{` begins; NULL if there is none.

    If that is inside a string, then the params before it are not valid JSON, and are rejected.
    """
    cdef Octets key
    while True:
        end = last_brace(at, end)
        if end is NULL or end - at < 11:
            return NULL
        key = end - 11
        if skip(&key, end, b',"context":'):
            return end - 11


cdef inline bint scan_request(Octets at, Octets end, RequestSpans* found) noexcept:
    """Return whether the bytes are a request in this layout; if so, fill in where its parts are."""
    if not (
        skip(&at, end, b'{"type":"request","payload":{"protocol_version":"2","request_id":"')
        and take_text(&at, end, &found.request_id)
        and skip(&at, end, b'","job_id":"')
        and take_text(&at, end, &found.job_id)
        and skip(&at, end, b'","function_name":"')
        and take_text(&at, end, &found.function_name)
        and skip(&at, end, b'","params":')
    ):
        return False
    found.params.start = at
    at = find_context(at, end)
    if at is NULL:
        return False
    found.params.size = at - found.params.start
    if not (
        skip(&at, end, b',"context":{"job_id":"')
        and take_text(&at, end, &found.context_job_id)
        and skip(&at, end, b'","attempt":')
        and take_attempt(&at, end, &found.attempt)
        and skip(&at, end, b',"enqueue_time":"')
        and take_moment(&at, end, &found.enqueue_time)
        and skip(&at, end, b'","queue_name":"')
        and take_text(&at, end, &found.queue_name)
        and skip(&at, end, b'","deadline":')
    ):
        return False
    found.has_deadline = skip(&at, end, b'"')
    if found.has_deadline:
        if not take_moment(&at, end, &found.deadline) or not skip(&at, end, b'"'):
            return False
    elif not skip(&at, end, b"null"):
        return False
    if not skip(&at, end, b',"trace_context":'):
        return False
    if not take_strings(&at, end, &found.trace_context):
        return False
    # Orchestrators up to 0.9.18 do not send correlation_context.
    found.correlation_context.start = NULL
    if skip(&at, end, b',"correlation_context":'):
        if not take_strings(&at, end, &found.correlation_context):
            return False
    found.worker_id.start = NULL
    if not skip(&at, end, b',"worker_id":null'):
        if not skip(&at, end, b',"worker_id":"') or not take_text(&at, end, &found.worker_id):
            return False
        if not skip(&at, end, b'"'):
            return False
    return skip(&at, end, b"}}}") and at == end
