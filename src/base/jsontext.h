/* Text from outside into jansson, which refuses what is not UTF-8. */
#ifndef MT_BASE_JSONTEXT_H
#define MT_BASE_JSONTEXT_H

#include "base/slice.h"

#include <jansson.h>

/* A JSON string; bytes that are not UTF-8 become U+FFFD. Gives; never NULL. */
json_t *json_string_lossy(struct slice text);

#endif
