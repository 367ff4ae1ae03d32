/*
 * Which process this is, as a text that another one can be asked about: has it
 * ended? Sure answers only: on another machine, or in another PID namespace, or
 * where /proc is not told, nobody has.
 */
#ifndef MT_BASE_PROCESS_H
#define MT_BASE_PROCESS_H

#include <stdbool.h>

/* Boot id, PID and time namespace, pid and when it was started; "" where these
 * cannot be known. Gives. */
char *process_self(void);

/* `process` is what process_self() once gave there. A stopped process lives; a
 * zombie does not. */
bool process_has_ended(const char *process);

#endif
