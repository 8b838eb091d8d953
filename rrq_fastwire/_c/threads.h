/* A flag that one thread at a time can set. Where there is a GIL, it is an int. */

#ifndef RRQ_FASTWIRE_THREADS_H
#define RRQ_FASTWIRE_THREADS_H

#include <Python.h>

#ifdef Py_GIL_DISABLED
#define FREE_THREADED 1
#else
#define FREE_THREADED 0
#endif

/* Whether the flag was set already; it is now. */
static inline int set_flag(int *flag) {
#ifdef Py_GIL_DISABLED
    return _Py_atomic_exchange_int(flag, 1);
#else
    const int was = *flag;
    *flag = 1;
    return was;
#endif
}

static inline void clear_flag(int *flag) {
#ifdef Py_GIL_DISABLED
    _Py_atomic_store_int_release(flag, 0);
#else
    *flag = 0;
#endif
}

#endif
