/* What runs for each byte of a frame. Every function stays within the pointers it is given, raises
   nothing and runs nobody's code. Behind that, what makes objects of it: NULL is an exception. */

#ifndef RRQ_FASTWIRE_SCAN_H
#define RRQ_FASTWIRE_SCAN_H

#include <Python.h>
#include <datetime.h>
#include <string.h>

/* One copy of a function for all its callers. A frame passes through so much code, that of Python
   and of the JSON library most of all, that it competes for the instruction cache. */
#if defined(_MSC_VER)
#define SHARED static __declspec(noinline)
#define INLINED static __forceinline
#else
#define SHARED static __attribute__((noinline))
#define INLINED static inline __attribute__((always_inline))
#endif

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define SCAN_BLOCK 16

/* The first byte of a block of 16 that is not plain: SCAN_BLOCK if all are. */
static inline int scan_block(const unsigned char *at) {
    const __m128i text = _mm_loadu_si128((const __m128i *)at);
    /* Compared as signed bytes, 0x80 and above is less than a space, too. */
    const int stops = _mm_movemask_epi8(_mm_or_si128(
        _mm_cmplt_epi8(text, _mm_set1_epi8(0x20)),
        _mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8('"')),
                     _mm_cmpeq_epi8(text, _mm_set1_epi8('\\')))));
#if defined(_MSC_VER)
    unsigned long first;
    return _BitScanForward(&first, stops) ? (int)first : SCAN_BLOCK;
#else
    return stops ? __builtin_ctz(stops) : SCAN_BLOCK;
#endif
}
#else
#define SCAN_BLOCK 8

/* SCAN_BLOCK if 8 bytes are all plain, else 0: some byte is not. */
static inline int scan_block(const unsigned char *at) {
    const unsigned long long ones = 0x0101010101010101ULL, tops = 0x8080808080808080ULL;
    unsigned long long text, quote, backslash;
    memcpy(&text, at, 8);
    quote = text ^ (ones * '"');
    backslash = text ^ (ones * '\\');
    /* A byte that was zero, or less than a space, borrows and shows its top bit. */
    return ((text - ones * 0x20) | (quote - ones) | (backslash - ones) | text) & tops ? 0 : 8;
}
#endif

/* Where a run of text ends that stands in JSON as it is: ASCII from 0x20, no quote, no backslash. */
SHARED const unsigned char *plain_end(const unsigned char *at, const unsigned char *end) {
    while (end - at >= SCAN_BLOCK) {
        const int plain = scan_block(at);
        at += plain;
        if (plain < SCAN_BLOCK)
            break;
    }
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* Steps over a literal; 0 if something else is there. Inlined, since its length is a constant then. */
INLINED int skip(const unsigned char **at, const unsigned char *end, const char *literal) {
    const size_t size = strlen(literal);
    if ((size_t)(end - *at) < size || memcmp(*at, literal, size) != 0)
        return 0;
    *at += size;
    return 1;
}

/* The last opening brace, or NULL. */
static inline const unsigned char *last_brace(const unsigned char *at, const unsigned char *end) {
#if defined(__linux__)
    return (const unsigned char *)memrchr(at, '{', (size_t)(end - at));
#else
    while (end > at)
        if (*--end == '{')
            return end;
    return NULL;
#endif
}

/* How many opening brackets and braces there are, those in texts included. */
static inline Py_ssize_t openers(const unsigned char *at, const unsigned char *end) {
    Py_ssize_t count = 0;
    for (; at < end; at++)
        count += (*at | 0x20) == '{';
    return count;
}

/* The number of `count` digits, nine at the most; -1 if they are none. */
SHARED int number_of(const unsigned char *at, int count) {
    int number = 0;
    for (; count > 0; count--, at++) {
        const unsigned int digit = (unsigned int)*at - '0';
        if (digit > 9)
            return -1;
        number = number * 10 + (int)digit;
    }
    return number;
}

/* Whether eight characters are those of the pattern, any digit where that has a 0; `digits` has their
   values then. A digit less its '0' is below ten, whatever is equal to the pattern is zero. */
static inline int eight(const unsigned char *at, const char *pattern, const char *limits,
                        unsigned char *digits) {
    unsigned long long text, expected, limit;
    memcpy(&text, at, 8);
    memcpy(&expected, pattern, 8);
    memcpy(&limit, limits, 8);
    text ^= expected;
    memcpy(digits, &text, 8);
    return ((text & 0xF0F0F0F0F0F0F0F0ULL) | ((text + limit) & 0x8080808080808080ULL)) == 0;
}

/* A date-time as the orchestrator writes it, 2026-11-24T03:13:36.570640729Z: year, month, day, hour,
   minute, second and microsecond; 0 for everything else. Months have as many days as they like. */
static inline int orchestrators_time(const unsigned char *at, const unsigned char *end, int *fields) {
    unsigned char date[8], time[8], part[8];
    if (end - at < 30 || at[10] != 'T' || at[19] != '.' || at[29] != 'Z')
        return 0;
    if (!eight(at, "0000-00-", "vvvv\x7fvv\x7f", date) || !eight(at + 11, "00:00:00", "vv\x7fvv\x7fvv", time) ||
        !eight(at + 20, "00000000", "vvvvvvvv", part))
        return 0;
    if (at[28] < '0' || at[28] > '9' || at[8] < '0' || at[8] > '9' || at[9] < '0' || at[9] > '9')
        return 0;
    fields[0] = date[0] * 1000 + date[1] * 100 + date[2] * 10 + date[3];
    fields[1] = date[5] * 10 + date[6];
    fields[2] = (at[8] - '0') * 10 + (at[9] - '0');
    fields[3] = time[0] * 10 + time[1];
    fields[4] = time[3] * 10 + time[4];
    fields[5] = time[6] * 10 + time[7];
    fields[6] = ((part[0] * 10 + part[1]) * 10 + part[2]) * 1000 +
                (part[3] * 10 + part[4]) * 10 + part[5];
    return 1;
}

/* The size of a date-time in UTC with any fraction, and its numbers; 0 if it is none. */
SHARED Py_ssize_t rfc3339_utc(const unsigned char *text, const unsigned char *end, int *fields) {
    const unsigned char *at = text + 20;
    int place, digits;
    if (end - text < 20 || text[4] != '-' || text[7] != '-' || text[13] != ':' || text[16] != ':' ||
        (text[10] != 'T' && text[10] != 't' && text[10] != ' '))
        return 0;
    fields[0] = number_of(text, 4);
    for (place = 1; place < 6; place++) {
        fields[place] = number_of(text + 2 + 3 * place, 2);
        if (fields[place] < 0)
            return 0;
    }
    fields[6] = 0;
    if (text[19] == '.') {
        while (at < end && *at >= '0' && *at <= '9')
            at++;
        digits = at - text < 26 ? (int)(at - text) - 20 : 6;
        if (digits == 0 || at == end)
            return 0;
        fields[6] = number_of(text + 20, digits);
        for (; digits < 6; digits++)
            fields[6] *= 10;
    } else
        at--;
    return *at == 'Z' || *at == 'z' ? at + 1 - text : 0;
}

static inline int days_in(int year, int month) {
    if (month == 2)
        return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) ? 29 : 28;
    return month == 4 || month == 6 || month == 9 || month == 11 ? 30 : 31;
}

/* Where an RFC 3339 text in UTC stops, and its numbers; NULL for everything else. */
SHARED const unsigned char *time_end(const unsigned char *at, const unsigned char *end, int *fields) {
    const Py_ssize_t size = orchestrators_time(at, end, fields) ? 30 : rfc3339_utc(at, end, fields);
    if (size == 0 || fields[0] < 1 || fields[1] < 1 || fields[1] > 12 || fields[2] < 1)
        return NULL;
    if (fields[2] > 28 && fields[2] > days_in(fields[0], fields[1]))
        return NULL;
    return fields[3] > 23 || fields[4] > 59 || fields[5] > 59 ? NULL : at + size;
}

/* The layout of a request as the orchestrator writes it: every key in its place, no spaces, texts
   without escapes. The rest is looked at when it is made into objects. */

/* Bytes of a frame; those of null start nowhere. */
typedef struct {
    const unsigned char *start;
    Py_ssize_t size;
} Span;

typedef struct {
    Span request_id, job_id, function_name;
    Span params;        /* any JSON, or none */
    Span context_job_id, queue_name, worker_id;
    Span trace_context, correlation_context;
    unsigned long long attempt;
    int enqueue_time[7], deadline[7];
    int has_deadline;
} RequestSpans;

/* A plain text, and steps up to its end; a closing quote is there only if it is whole. */
static inline Span take_span(const unsigned char **at, const unsigned char *end) {
    Span text = {*at, 0};
    *at = plain_end(*at, end);
    text.size = *at - text.start;
    return text;
}

/* Steps over an unsigned integer of 32 bits; 0 if it is none. */
static inline int skip_integer(const unsigned char **at, const unsigned char *end,
                               unsigned long long *number) {
    const unsigned char *const start = *at;
    for (*number = 0; *at < end && **at >= '0' && **at <= '9' && *at - start < 10; ++*at)
        *number = *number * 10 + (unsigned long long)(**at - '0');
    return *number <= 0xFFFFFFFF && *at > start && (*start != '0' || *at - start == 1);
}

/* A flat object of plain texts, and steps over it; its size is 0 if it is none. */
SHARED Span take_strings(const unsigned char **at, const unsigned char *end) {
    Span strings = {*at, 0};
    int more = skip(at, end, "{\"");
    if (!more && !skip(at, end, "{}"))
        return strings;
    while (more) {
        *at = plain_end(*at, end);
        if (!skip(at, end, "\":\""))
            return strings;
        *at = plain_end(*at, end);
        more = skip(at, end, "\",\"");
        if (!more && !skip(at, end, "\"}"))
            return strings;
    }
    strings.size = *at - strings.start;
    return strings;
}

/* Where the key of the last object of that name seems to begin, with its comma; NULL if nowhere.
   If it only looks like it, what is before it is no JSON. Keeps its distance from the end, where it
   is looked for first the next time. */
static inline const unsigned char *context_start(const unsigned char *at, const unsigned char *end,
                                                 Py_ssize_t *distance) {
    const unsigned char *brace = end, *key = end - *distance;
    if (*distance <= end - at && skip(&key, end, ",\"context\":{"))
        return end - *distance;
    while ((brace = last_brace(at, brace)) != NULL && brace - at >= 11) {
        key = brace - 11;
        if (skip(&key, brace, ",\"context\":")) {
            *distance = end - (brace - 11);
            return brace - 11;
        }
    }
    return NULL;
}

/* Whether that layout is there, and where its parts are. */
static int scan_request(const unsigned char *at, const unsigned char *end, Py_ssize_t *distance,
                        RequestSpans *found) {
    const Span null = {NULL, 0};
    if (!skip(&at, end, "{\"type\":\"request\",\"payload\":{\"protocol_version\":\"2\",\"request_id\":\""))
        return 0;
    found->request_id = take_span(&at, end);
    if (!skip(&at, end, "\",\"job_id\":\""))
        return 0;
    found->job_id = take_span(&at, end);
    if (!skip(&at, end, "\",\"function_name\":\""))
        return 0;
    found->function_name = take_span(&at, end);
    if (!skip(&at, end, "\",\"params\":"))
        return 0;
    found->params.start = at;
    at = context_start(at, end, distance);
    if (at == NULL)
        return 0;
    found->params.size = at - found->params.start;
    if (!skip(&at, end, ",\"context\":{\"job_id\":\""))
        return 0;
    found->context_job_id = take_span(&at, end);
    if (!skip(&at, end, "\",\"attempt\":") || !skip_integer(&at, end, &found->attempt))
        return 0;
    if (!skip(&at, end, ",\"enqueue_time\":\""))
        return 0;
    at = time_end(at, end, found->enqueue_time);
    if (at == NULL || !skip(&at, end, "\",\"queue_name\":\""))
        return 0;
    found->queue_name = take_span(&at, end);
    found->has_deadline = skip(&at, end, "\",\"deadline\":\"");
    if (found->has_deadline) {
        at = time_end(at, end, found->deadline);
        if (at == NULL || !skip(&at, end, "\""))
            return 0;
    } else if (!skip(&at, end, "\",\"deadline\":null"))
        return 0;
    found->trace_context = found->correlation_context = found->worker_id = null;
    if (!skip(&at, end, ",\"trace_context\":null")) {
        if (!skip(&at, end, ",\"trace_context\":"))
            return 0;
        found->trace_context = take_strings(&at, end);
        if (found->trace_context.size == 0)
            return 0;
    }
    /* Orchestrators up to 0.9.18 do not send it. */
    if (!skip(&at, end, ",\"correlation_context\":null") &&
        skip(&at, end, ",\"correlation_context\":")) {
        found->correlation_context = take_strings(&at, end);
        if (found->correlation_context.size == 0)
            return 0;
    }
    if (skip(&at, end, ",\"worker_id\":\"")) {
        found->worker_id = take_span(&at, end);
        if (!skip(&at, end, "\""))
            return 0;
    } else if (!skip(&at, end, ",\"worker_id\":null"))
        return 0;
    return skip(&at, end, "}}}") && at == end;
}

/* ---- objects ---- */

SHARED PyObject *text_of(Span span) {
    PyObject *const text = PyUnicode_New(span.size, 127);
    if (text != NULL)
        memcpy(PyUnicode_1BYTE_DATA(text), span.start, (size_t)span.size);
    return text;
}

/* The text; the object `known`, which is ASCII, if it is the same. */
SHARED PyObject *text_like(PyObject *known, Span span) {
    if (PyUnicode_GET_LENGTH(known) == span.size &&
        memcmp(PyUnicode_1BYTE_DATA(known), span.start, (size_t)span.size) == 0)
        return Py_NewRef(known);
    return text_of(span);
}

/* The text; the object of the last time if it is the same, as it is frame after frame. */
static inline PyObject *recall(PyObject **last, Span span) {
    PyObject *const text = text_like(*last, span);
#ifndef Py_GIL_DISABLED
    if (text != *last && text != NULL && span.size <= 64)
        Py_SETREF(*last, Py_NewRef(text));
#endif
    return text;
}

/* A datetime in UTC of numbers that time_end() has checked; the C API would check them again. */
SHARED PyObject *date_time(const int *fields) {
    PyDateTime_DateTime *const made =
        PyObject_New(PyDateTime_DateTime, PyDateTimeAPI->DateTimeType);
    if (made == NULL)
        return NULL;
    made->hashcode = -1;
    made->hastzinfo = 1;
    made->fold = 0;
    made->tzinfo = Py_NewRef(PyDateTimeAPI->TimeZone_UTC);
    made->data[0] = (unsigned char)(fields[0] >> 8);
    made->data[1] = (unsigned char)fields[0];
    made->data[2] = (unsigned char)fields[1];
    made->data[3] = (unsigned char)fields[2];
    made->data[4] = (unsigned char)fields[3];
    made->data[5] = (unsigned char)fields[4];
    made->data[6] = (unsigned char)fields[5];
    made->data[7] = (unsigned char)(fields[6] >> 16);
    made->data[8] = (unsigned char)(fields[6] >> 8);
    made->data[9] = (unsigned char)fields[6];
    return (PyObject *)made;
}

/* Calls a function of one argument; one in C without the detour through the interpreter. */
static inline PyObject *call(PyObject *function, PyObject *argument) {
    if (PyCFunction_CheckExact(function)) {
        PyCFunction const run = PyCFunction_GET_FUNCTION(function);
        PyObject *const self = PyCFunction_GET_SELF(function);
        const int flags = PyCFunction_GET_FLAGS(function);
        if (flags == METH_O)
            return run(self, argument);
        if (flags == (METH_FASTCALL | METH_KEYWORDS))
            return ((_PyCFunctionFastWithKeywords)(void (*)(void))run)(self, &argument, 1, NULL);
    }
    return PyObject_CallOneArg(function, argument);
}

/* What a document of at most this size is handed over in, to a function that reads it and lets it
   go: bytes that are used again and again, unless somebody has kept them or is still reading. */
#define SMALL_JSON 4096

static PyObject *call_with_bytes(PyObject *function, Span json) {
    PyObject *result, *bytes = NULL;
#ifndef Py_GIL_DISABLED
    static PyObject *spare = NULL;
    bytes = spare;
    spare = NULL;
#endif
    if (bytes == NULL)
        bytes = PyBytes_FromStringAndSize(NULL, SMALL_JSON);
    if (bytes == NULL)
        return NULL;
    Py_SET_SIZE((PyVarObject *)bytes, json.size);
    memcpy(PyBytes_AS_STRING(bytes), json.start, (size_t)json.size);
    PyBytes_AS_STRING(bytes)[json.size] = 0;
    result = call(function, bytes);
#ifndef Py_GIL_DISABLED
    if (Py_REFCNT(bytes) == 1 && spare == NULL) {
        spare = bytes;
        return result;
    }
#endif
    Py_DECREF(bytes);
    return result;
}

/* For Cython to find the exception that is already there. */
static int raise_it(void) { return -1; }

#endif
