/* Text for PostgreSQL: what is no UTF-8, and NUL, becomes U+FFFD. */
#ifndef MT_STORES_CLEAN_H
#define MT_STORES_CLEAN_H

#include "base/slice.h"

/* Gives; "" for an absent slice. */
char *clean_text(struct slice text);

#endif
