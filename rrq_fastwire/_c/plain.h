#ifndef RRQ_FASTWIRE_PLAIN_H
#define RRQ_FASTWIRE_PLAIN_H

#include <Python.h>

#define DEEPEST_PLAIN 128

/* Whether nothing but Python's own types is in a value, nested at most `levels` deep: _json.is_plain.
   Says no beyond DEEPEST_PLAIN. */
#if defined(__GNUC__)
__attribute__((visibility("hidden")))
#endif
int is_plain(PyObject *value, int levels);

#endif
