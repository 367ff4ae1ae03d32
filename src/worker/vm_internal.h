/* What a VM is made of, for the files of src/worker that make up its inside. */
#ifndef MT_WORKER_VM_INTERNAL_H
#define MT_WORKER_VM_INTERNAL_H

#include "base/list.h"
#include "worker/breakers.h"
#include "worker/doc.h"
#include "worker/runtime.h"
#include "worker/sched.h"
#include "worker/vm.h"

#include <lauxlib.h>
#include <lua.h>
#include <stdatomic.h>

#define TYPE_CDATA 10 /* LuaJIT's LUA_TCDATA, the last of its types */

enum vm_phase { PHASE_LOADING, PHASE_INIT, PHASE_HANDLE, PHASE_UNLOAD };

const char *vm_phase_name(enum vm_phase phase);

/* The watchdog's hook: set by the watchdog from NONE, or from SET when it was
 * lost; FIRED and cleared by the vm's own thread only (design 13.12). */
enum hook_state { HOOK_NONE, HOOK_SETTING, HOOK_SET, HOOK_FIRED };

/* Values kept in the registry; one line each makes enum and cleanup. */
enum vm_ref {
    REF_PROTECT, /* C function that runs vm->call */
    REF_LAZY_MT, /* metatables */
    REF_EVENT_MT,
    REF_CTX_MT,
    REF_ARRAY_MT,
    REF_RAW_MT,
    REF_MAKE_ERR,   /* Lua: (class, code, message) → err table */
    REF_MAKE_INT64, /* Lua: (high, low) → int64 */
    REF_MAKE_UINT64,
    REF_ENV,   /* globals of handlers */
    REF_HOST,  /* primitives of our Lua modules */
    REF_SERVE, /* Lua: the loop of a task, runner.lua */
    REF_RUN_BATCH,
    REF_CALL,       /* Lua: runs one function as a task (init, on_unload) */
    REF_OUTCOME,    /* Lua: returned value → kind, class, code, reason, ms */
    REF_DESCRIBE,   /* Lua: raised value → the same */
    REF_HANDLER,    /* the table that the handler file returned */
    REF_HANDLE,     /* what serve calls: handle, or its transaction */
    REF_CTX_STATIC, /* fields of ctx that are the same for all deliveries */
    REF_PAYLOADS,   /* table: event slot → payload value while it is alive */
    REF_CTX,
    REF_BEGIN, /* C functions handed to serve */
    REF_FINISH,
    REF_HANDLERS, /* functions of the handler's table by name */
    REF_COUNT,
};

struct buf;

struct vm {
    lua_State *L;
    size_t used, limit; /* bytes; limit 0 while the libraries are opened */
    bool out_of_memory; /* an allocation was refused: replace the vm */
    bool killed;        /* the hook fired: replace the vm */
    bool is_closing, is_retired;
    enum vm_phase phase;

    struct runtime *rt;
    json_t *bundle, *decl;
    struct builder *builder;
    const char *name, *version;
    struct task *task; /* whose coroutine runs now */
    struct list busy;  /* tasks: running or suspended */
    struct list spare;
    int n_spare;
    struct unit *unit; /* whose version this is; NULL in the probe */

    struct { /* of vm_protect() */
        int (*fn)(lua_State *L);
        void *arg;
    } call;
    int refs[REF_COUNT];
    const void *lazy_mt, *event_mt, *ctx_mt, *array_mt, *raw_mt;
    uint16_t int64_id, uint64_id; /* ctype ids of LuaJIT's integers */
    const char *names[32];        /* interned field names, see event.c */
    int last_slot;                /* of events, see event.c */
    int free_slots_len, free_slots_cap;
    int *free_slots;

    _Atomic int hook;
    _Atomic uint64_t hook_run; /* the run that the hook is meant for */
    int64_t soft_limit_us;
    int64_t timeout_ms;
    struct breaker_rule breaker;
    int64_t cpu_us;  /* of Lua, not yet reported */
    struct vm *next; /* in the runtime */
};

static inline void vm_push_ref(struct lua_State *L, const struct vm *vm,
                               enum vm_ref ref)
{
    lua_rawgeti(L, LUA_REGISTRYINDEX, vm->refs[ref]);
}

/* Keep the value on top of the stack as `ref`. [-1, +0] */
void vm_set_ref(struct vm *vm, enum vm_ref ref);

/* Run `fn` on the vm's main state with `arg` reachable as vm_arg(L), protected
 * and under the watchdog. Its results stay on the main stack: pop them. On
 * failure nothing stays and `err` tells; class limit is in err->code. */
bool vm_protect(struct vm *vm, int (*fn)(lua_State *L), void *arg,
                struct err *err) MUST_CHECK;

/* Make a vm of a bundle: libraries, limits, the file's top level. NULL and
 * `err` ("handlers/x.lua:3: …") when that fails. `builder` is the probe's: what
 * is required is read from disk and noted in it. */
struct builder;
struct vm *vm_new_building(struct runtime *rt, json_t *bundle,
                           struct builder *builder, struct err *err) MUST_CHECK;
struct vm *vm_new(struct runtime *rt, json_t *bundle,
                  struct err *err) MUST_CHECK;

/* No new task starts in it; it is freed by vms_reap() after its last. */
void vm_retire(struct vm *vm);
void vms_reap(struct runtime *rt);
void vms_free(struct runtime *rt); /* all; suspended tasks are ended */
/* End the suspended tasks of one unit: its deliveries are given back. */
void vms_end_tasks(struct runtime *rt, const struct unit *unit);

/* Does the handler's table have this function? */
bool vm_has(struct vm *vm, const char *name);

/* Text as a function with `env` (index) as its globals; text only, no
 * bytecode. [-0, +1]: the function or, when false, the message. */
bool vm_load_text(lua_State *L, struct slice text, const char *chunk, int env);

/* --- lazy.c: JSON values in Lua --------------------------------------------- */

/* For whom a document is alive: a delivery, or a value that Lua collects. Lives
 * itself until the process ends, or as long as Lua reaches it. */
struct doc_owner {
    struct doc *doc;
    uint64_t generation; /* a lazy of another one is over */
};

struct lazy {
    struct doc_owner *owner;
    uint64_t generation;
    uint32_t node;
    bool has_overlay; /* children and changes, in the userdata's environment */
    bool is_changed;

    /* Of the loop over its members: where it goes on, how many of those added
     * were given, and the member given last (0: none, or one that was added). */
    uint32_t next, last;
    int added;
};

void lazy_open(lua_State *L, struct vm *vm); /* metatables */

/* The value of a node. `anchor` is the stack index of a value to keep alive
 * with it, or 0. [-0, +1] */
void lazy_push(lua_State *L, struct doc_owner *owner, uint32_t node,
               int anchor);

bool has_metatable(lua_State *L, int index, const void *mt);
bool is_lazy(const struct vm *vm, lua_State *L, int index);

/* pairs, next, ipairs, rawget, rawset, rawequal, type, tostring: what the
 * sandbox gives instead of LuaJIT's. [-0, +1]: a table of them. */
void lazy_functions(lua_State *L);

/* The lazy at `index`; raises when its delivery is over. */
struct lazy *lazy_live(lua_State *L, int index);
/* A field, as reading gives it; both indices absolute. [-0, +1] */
void lazy_get(lua_State *L, int index, int key);
int lazy_newindex(lua_State *L);  /* (lazy, name, value) */
int lazy_calibrate(lua_State *L); /* (an int64, a uint64): learn their ids */

/* Did nobody change the lazy at index? */
bool lazy_unchanged(lua_State *L, int index);

/* [-0, +1] or false: what was put over a member's own value; lightuserdata
 * stands for nil (json.null) and for removed fields. */
bool lazy_overlaid(lua_State *L, int index, struct slice name);
bool lazy_overlaid_key(lua_State *L, int index, int key);
bool lazy_is_removed(lua_State *L, int index);
/* [-0, +1] the names that were added, a table or nil. */
void lazy_added(lua_State *L, int index);
/* The array's kept length: 0 none, -1 no array. [-0, +0] */
long array_kept_len(lua_State *L, int index);
/* [-0, +1] or false: a lazy of the array's own node. */
bool array_origin(lua_State *L, int index);
/* 'i', 'u' or 0, as in LuaJIT's 64-bit integers. */
int wide_integer(lua_State *L, int index, uint64_t *value);

/* Push the buffer's bytes and free it, also when pushing raises. [-0, +1] */
int push_buf(lua_State *L, struct buf *buf);

/* --- parts of the environment: each pushes one table, [-0, +1] ---------------- */

int json_open(lua_State *L);
int text_open(lua_State *L);
int time_open(lua_State *L);
int crypto_open(lua_State *L);
int uuid_open(lua_State *L);
int pattern_open(lua_State *L);
int metric_open(lua_State *L);
int log_open(lua_State *L);
int timer_open(lua_State *L);
int host_open(lua_State *L);
void ctx_open(lua_State *L, struct vm *vm);

#endif
