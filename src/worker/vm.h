/*
 * One Lua state: a handler version with its own globals, memory limit and
 * life. Made from a bundle, never from disk.
 *
 * Whatever may raise runs inside vm_protect() or a task. A vm belongs to the
 * worker's thread; only the watchdog's hook comes from another.
 */
#ifndef MT_WORKER_VM_H
#define MT_WORKER_VM_H

#include "base/err.h"
#include "base/slice.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lua_State;
struct runtime;
struct vm;

/* From any coroutine of it, in a few ns. */
struct vm *vm_of(struct lua_State *L);

struct runtime *vm_runtime(const struct vm *vm);
const char *vm_handler(const struct vm *vm); /* its name */
const char *vm_version(const struct vm *vm);
const json_t *vm_allow(const struct vm *vm);  /* resolved `allow`, an object */
const json_t *vm_config(const struct vm *vm); /* resolved `config` */

/* --- values (all for use where raising is allowed) -------------------------- */

/* The value at `index` as JSON; lossless: lazy objects unchanged byte for byte,
 * 64-bit integers, json.null, json.array. Never raises; false says why it
 * cannot be (a function, a cycle, a mixed table). */
struct buf;
bool vm_encode(struct lua_State *L, int index, struct buf *out,
               struct err *err) MUST_CHECK;

/* The same for people to read: holes are null, what JSON has no form for is
 * named. Always writes something. */
void vm_encode_shown(struct lua_State *L, int index, struct buf *out);

/* JSON text as a Lua value, [-0, +1] when true. */
bool vm_decode(struct lua_State *L, struct slice text,
               struct err *err) MUST_CHECK;

/* A 64-bit integer: a number within ±2^53, else LuaJIT's int64. [-0, +1] */
void vm_push_int64(struct lua_State *L, int64_t value);
/* Is the value at `index` a 64-bit integer of LuaJIT's? */
bool vm_to_int64(struct lua_State *L, int index, int64_t *value);

/* json.null, json.array's mark. */
bool vm_is_null(struct lua_State *L, int index);
bool vm_is_array(struct lua_State *L, int index);

#endif
