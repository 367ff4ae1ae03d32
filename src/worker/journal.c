#include "worker/journal.h"

#include "base/buf.h"
#include "worker/metrics_out.h"
#include "worker/task.h"

static const char *const classes[] = {
#define X(id, name) name,
    EFFECT_CLASSES(X)
#undef X
};

const char *effect_class_name(enum effect_class class)
{
    return classes[class];
}

enum effect_mode journal_mode(lua_State *L)
{
    return vm_of(L)->rt->mode;
}

/* Written down at once: the handler may change its tables later. */
static void remember(lua_State *L, struct task *task, enum effect_class class,
                     const char *name, int args)
{
    struct buf *out = &task->effects;

    buf_printf(out, "%s{\"class\":\"%s\",\"name\":", out->len ? "," : "",
               effect_class_name(class));
    buf_add_json(out, slice_of(name));
    if (args) {
        buf_add_text(out, ",\"args\":");
        vm_encode_shown(L, args, out);
    }
    buf_add_char(out, '}');
}

/* A spec's answer, or nothing. [-0, +2] */
static void push_answer(lua_State *L, const char *name)
{
    vm_push_ref(L, vm_of(L), REF_HOST);
    lua_getfield(L, -1, "answer_of");
    lua_remove(L, -2);
    if (!lua_isfunction(L, -1)) {
        lua_pop(L, 1);
        lua_pushnil(L);
        lua_pushnil(L);
        return;
    }
    lua_pushstring(L, name);
    lua_call(L, 1, 2);
}

bool journal_effect(lua_State *L, enum effect_class class, const char *name,
                    int args)
{
    enum effect_mode mode = journal_mode(L);
    struct task *task = task_current(L);

    if (mode == MODE_PERFORM)
        return false;
    if (task)
        remember(L, task, class, name, args);
    if (mode == MODE_RECORD && class == EFFECT_SQL)
        return false;
    push_answer(L, name);
    return true;
}

void journal_done(lua_State *L, enum effect_class class, bool ok)
{
    struct vm *vm = vm_of(L);

    if (vm->rt->mode == MODE_PERFORM)
        metrics_effect(vm->rt->metrics, vm->name, effect_class_name(class), ok);
}
