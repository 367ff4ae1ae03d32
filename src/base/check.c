#include "base/check.h"

#include <stdio.h>
#include <stdlib.h>

void check_failed(const char *cond, const char *file, int line,
                  const char *func)
{
    fprintf(stderr, "%s:%d: %s: broken invariant: %s\n", file, line, func,
            cond);
    abort();
}
