/*
 * moontide's own Lua modules as bytecode, compiled once a process: reading their
 * text was most of what a VM cost. Only ours: what handlers bring is text.
 */
#ifndef MT_WORKER_OWN_CODE_H
#define MT_WORKER_OWN_CODE_H

#include <stdbool.h>

struct lua_State;

/* The module as a function with the real globals [-0, +1], or false [-0, +0]
 * when none is called so. Raises. One thread of a process may call it. */
bool own_code_push(struct lua_State *L, const char *name);

/* All of them now, for children that are forked later. */
void own_code_compile(void);

#endif
