/* Includes scan.h alone, so that `make analyze` can use stricter checks than for generated code. */

#include "scan.h"

size_t use(const unsigned char *at, const unsigned char *end);

size_t use(const unsigned char *at, const unsigned char *end) {
    const unsigned char *brace = last_brace(at, end);
    const unsigned char *text = plain_end(at, end);
    return (size_t)(text - at) + (brace != NULL) + (size_t)skip(&at, end, "literal");
}
