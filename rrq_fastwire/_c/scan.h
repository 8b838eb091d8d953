/* What runs for each byte of a frame or each item of a result. Every function stays within the
   pointers it is given, raises nothing and runs nobody's code. */

#ifndef RRQ_FASTWIRE_SCAN_H
#define RRQ_FASTWIRE_SCAN_H

#include <Python.h>
#include <string.h>

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
static inline const unsigned char *plain_end(const unsigned char *at, const unsigned char *end) {
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

/* Whether `size` bytes are the same: memcmp() of short texts without the call. */
static inline int same(const unsigned char *one, const void *other, size_t size) {
    const unsigned char *const two = (const unsigned char *)other;
    unsigned long long first, last, x, y;
    if (size < 8 || size > 32)
        return memcmp(one, two, size) == 0;
    memcpy(&first, one, 8);
    memcpy(&x, two, 8);
    memcpy(&last, one + size - 8, 8);
    memcpy(&y, two + size - 8, 8);
    if (first != x || last != y)
        return 0;
    if (size <= 16)
        return 1;
    memcpy(&first, one + 8, 8);
    memcpy(&x, two + 8, 8);
    memcpy(&last, one + size - 16, 8);
    memcpy(&y, two + size - 16, 8);
    return first == x && last == y;
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
static inline int number_of(const unsigned char *at, int count) {
    int number = 0;
    for (; count > 0; count--, at++) {
        const unsigned int digit = (unsigned int)*at - '0';
        if (digit > 9)
            return -1;
        number = number * 10 + (int)digit;
    }
    return number;
}

static inline int is_leaf(PyObject *value) {
    const PyTypeObject *const type = Py_TYPE(value);
    return type == &PyUnicode_Type || type == &PyLong_Type || type == &PyFloat_Type ||
           type == &PyBool_Type || value == Py_None;
}

/* Whether nothing but Python's own types is in a value, nested at most `levels` deep: _json.is_plain. */
static int is_plain(PyObject *value, int levels) {
    PyObject *key, *item;
    Py_ssize_t at = 0;
    if (is_leaf(value))
        return 1;
    if (levels == 0)
        return 0;
    if (PyDict_CheckExact(value)) {
        while (PyDict_Next(value, &at, &key, &item))
            if (!is_leaf(item) && !is_plain(item, levels - 1))
                return 0;
        return 1;
    }
    if (PyList_CheckExact(value)) {
        for (; at < PyList_GET_SIZE(value); at++) {
            item = PyList_GET_ITEM(value, at);
            if (!is_leaf(item) && !is_plain(item, levels - 1))
                return 0;
        }
        return 1;
    }
    if (PyTuple_CheckExact(value)) {
        for (; at < PyTuple_GET_SIZE(value); at++) {
            item = PyTuple_GET_ITEM(value, at);
            if (!is_leaf(item) && !is_plain(item, levels - 1))
                return 0;
        }
        return 1;
    }
    return 0;
}

#endif
