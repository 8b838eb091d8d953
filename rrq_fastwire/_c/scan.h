/* What runs for each byte of a frame. Every function stays within the pointers it is given, raises
   nothing and runs nobody's code. */

#ifndef RRQ_FASTWIRE_SCAN_H
#define RRQ_FASTWIRE_SCAN_H

#include <Python.h>
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

/* Steps over a text that is known, up to its closing quote; 0 if something else is there. */
SHARED int skip_known(const unsigned char **at, const unsigned char *end,
                      const void *text, Py_ssize_t size) {
    const unsigned char *one = *at, *other = (const unsigned char *)text;
    const unsigned char *stop;
    unsigned long long x, y;
    if (end - one <= size || one[size] != '"')
        return 0;
    stop = one + size;
    for (; stop - one >= 8; one += 8, other += 8) {
        memcpy(&x, one, 8);
        memcpy(&y, other, 8);
        if (x != y)
            return 0;
    }
    for (; one < stop; one++, other++)
        if (*one != *other)
            return 0;
    *at = stop;
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

#endif
