/* What Cython cannot express: SIMD, and literals whose length the compiler knows. Every function
   stays within the pointers that it gets, and touches no Python object. */

#ifndef RRQ_FASTWIRE_SCAN_H
#define RRQ_FASTWIRE_SCAN_H

#include <Python.h>
#include <string.h>

#ifdef Py_GIL_DISABLED
#define FREE_THREADED 1
#else
#define FREE_THREADED 0
#endif

#if defined(_MSC_VER)
#define ALWAYS_INLINE static __forceinline
#else
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#endif

/* Plain text needs no escape in JSON: ASCII from 0x20 on, without a quote and a backslash. */

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>

/* Step over blocks of 16 bytes that are all plain. With GCC and Clang, stop at the first other byte. */
static inline const unsigned char *skip_plain_blocks(const unsigned char *at,
                                                     const unsigned char *end) {
    while (end - at >= 16) {
        const __m128i text = _mm_loadu_si128((const __m128i *)at);
        /* The comparison is signed, so bytes from 0x80 on are less than a space, too. */
        const int stops = _mm_movemask_epi8(_mm_or_si128(
            _mm_cmplt_epi8(text, _mm_set1_epi8(0x20)),
            _mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8('"')),
                         _mm_cmpeq_epi8(text, _mm_set1_epi8('\\')))));
        if (stops) {
#if defined(__GNUC__)
            at += __builtin_ctz((unsigned int)stops);
#endif
            break;
        }
        at += 16;
    }
    return at;
}
#else
#define skip_plain_blocks(at, end) (at)
#endif

/* Return the end of the plain text that begins at `at`. */
static inline const unsigned char *plain_end(const unsigned char *at, const unsigned char *end) {
    at = skip_plain_blocks(at, end);
    while (at < end && *at >= 0x20 && *at < 0x80 && *at != '"' && *at != '\\')
        at++;
    return at;
}

/* Return the last opening brace; NULL if there is none. */
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

/* Step over a literal if it comes next, and return whether it does. */
ALWAYS_INLINE int skip(const unsigned char **at, const unsigned char *end, const char *literal) {
    const size_t size = strlen(literal); /* a constant, because this function is inlined */
    if ((size_t)(end - *at) < size || memcmp(*at, literal, size) != 0)
        return 0;
    *at += size;
    return 1;
}

#endif
