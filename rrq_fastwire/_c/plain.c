/* The walk over a value before it is left to the JSON library; raises nothing and runs nobody's code.

   It visits every item of a result, so it looks into dicts where CPython keeps their items:
   PyDict_Next() alone takes a fifth of the time that orjson needs to write them. */

#define Py_BUILD_CORE_MODULE 1
#include <Python.h>

/* Where that was compiled and tried; elsewhere it asks. */
#if defined(__GNUC__) && PY_VERSION_HEX < 0x030E0000 && !defined(Py_GIL_DISABLED)
#if __has_include("internal/pycore_dict.h")
#include "internal/pycore_dict.h"
#define LOOKS_INTO_DICTS
#endif
#endif

#include "plain.h"

/* GCC makes one condition of neighbouring ones, and the next item waits until all are known. */
#if defined(__GNUC__)
#define APART __asm__ volatile("")
#else
#define APART
#endif

/* The items of one container that were not visited yet. */
typedef struct {
    PyObject **at, **end;
    Py_ssize_t step;    /* a dict has keys between them, and nothing where one was deleted */
    PyObject *dict;     /* one that has to be asked for its items */
    Py_ssize_t pos;
} Items;

static inline int enter(PyObject *value, Items *items) {
    *items = (Items){NULL, NULL, 1, NULL, 0};
    if (PyDict_CheckExact(value)) {
#ifdef LOOKS_INTO_DICTS
        PyDictKeysObject *const keys = ((PyDictObject *)value)->ma_keys;
        if (((PyDictObject *)value)->ma_values == NULL) {
            if (DK_IS_UNICODE(keys)) {
                items->at = &DK_UNICODE_ENTRIES(keys)->me_value;
                items->step = sizeof(PyDictUnicodeEntry) / sizeof(PyObject *);
            } else {
                items->at = &DK_ENTRIES(keys)->me_value;
                items->step = sizeof(PyDictKeyEntry) / sizeof(PyObject *);
            }
            items->end = items->at + keys->dk_nentries * items->step;
            return 1;
        }
#endif
        items->dict = value;
        return 1;
    }
    if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
        items->at = PySequence_Fast_ITEMS(value);
        items->end = items->at + Py_SIZE(value);
        return 1;
    }
    return 0;
}

/* The next item of a dict that has to be asked, NULL behind the last one. */
static PyObject *ask(PyObject *dict, Py_ssize_t *pos) {
    PyObject *key, *item;
    return PyDict_Next(dict, pos, &key, &item) ? item : NULL;
}

int is_plain(PyObject *value, int levels) {
    Items outer[DEEPEST_PLAIN];
    PyObject *const whole = value;
    Items items = {(PyObject **)&whole, (PyObject **)&whole + 1, 1, NULL, 0};
    int depth = 0;
    for (;;) {
        PyObject *item;
        if (items.at < items.end) {
            item = *items.at;
            items.at += items.step;
            if (item == NULL)
                continue;
        } else {
            Py_ssize_t pos = items.pos;
            item = items.dict == NULL ? NULL : ask(items.dict, &pos);
            items.pos = pos;
            if (item == NULL) {
                if (depth == 0)
                    return 1;
                items = outer[--depth];
                continue;
            }
        }
        if (PyUnicode_CheckExact(item))
            continue;
        APART;
        if (PyLong_CheckExact(item))
            continue;
        APART;
        if (PyFloat_CheckExact(item))
            continue;
        APART;
        if (PyBool_Check(item) || item == Py_None)
            continue;
        if (depth == levels || depth == DEEPEST_PLAIN)
            return 0;
        outer[depth++] = items;
        if (!enter(item, &items))
            return 0;
    }
}
