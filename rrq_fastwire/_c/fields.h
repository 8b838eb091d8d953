/* The attributes of a message, which are pointers at an offset, for every thread that has it. */

#ifndef RRQ_FASTWIRE_FIELDS_H
#define RRQ_FASTWIRE_FIELDS_H

#include <Python.h>
#include <string.h>

/* Before CPython 3.13 every thread has the GIL. */
#ifndef Py_BEGIN_CRITICAL_SECTION
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

/* A new reference; None while the message is in the making. */
static inline PyObject *load_field(PyObject *message, Py_ssize_t offset) {
    PyObject *value;
    Py_BEGIN_CRITICAL_SECTION(message);
    value = *(PyObject **)((char *)message + offset);
    value = Py_NewRef(value == NULL ? Py_None : value);
    Py_END_CRITICAL_SECTION();
    return value;
}

static inline void store_field(PyObject *message, Py_ssize_t offset, PyObject *value) {
    PyObject **const slot = (PyObject **)((char *)message + offset);
    PyObject *old;
    Py_BEGIN_CRITICAL_SECTION(message);
    old = *slot;
    *slot = Py_NewRef(value);
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(old);
}

static PyObject *get_field(PyObject *message, void *offset) {
    return load_field(message, (Py_ssize_t)offset);
}

static int set_field(PyObject *message, PyObject *value, void *offset) {
    if (value == NULL) {
        const char *const name = strrchr(Py_TYPE(message)->tp_name, '.');
        PyErr_Format(PyExc_AttributeError, "attributes of %s cannot be deleted", name + 1);
        return -1;
    }
    store_field(message, (Py_ssize_t)offset, value);
    return 0;
}

/* Gives a class the attribute; `accessor` has to live as long as the class. -1 is an exception. */
static int add_attribute(PyTypeObject *cls, PyObject *name, Py_ssize_t offset,
                         PyGetSetDef *accessor) {
    PyObject *descriptor;
    int status;
    *accessor = (PyGetSetDef){PyUnicode_AsUTF8(name), get_field, set_field, NULL, (void *)offset};
    if (accessor->name == NULL)
        return -1;
    descriptor = PyDescr_NewGetSet(cls, accessor);
    if (descriptor == NULL)
        return -1;
    status = PyDict_SetItem(cls->tp_dict, name, descriptor);
    Py_DECREF(descriptor);
    PyType_Modified(cls);
    return status;
}

#endif
