/* The handlers that the benchmarks run. */
#ifndef MT_BENCH_HANDLERS_H
#define MT_BENCH_HANDLERS_H

/* three: reads three fields of the payload; walk: visits all of it; raw: takes
 * its bytes; none: takes nothing. Ends the program for another name. */
const char *handler_named(const char *name);

#endif
