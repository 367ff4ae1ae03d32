#include "worker/breakers.h"

#include "base/clock.h"
#include "base/digest.h"
#include "base/list.h"
#include "base/mem.h"
#include "worker/metrics_out.h"
#include "worker/runtime.h"
#include "worker/task.h"

#include <stdlib.h>
#include <string.h>

struct breaker_line {
    struct list link; /* the latest used first */
    struct runtime *rt;
    char *handler, *destination;
    struct breaker breaker;
    struct breaker_policy policy; /* of the version that asked last */
    unsigned calls;               /* under way */
};

struct breakers {
    struct list lines;
    int len;
};

static int64_t number_of(const json_t *object, const char *name, int64_t dflt)
{
    const json_t *value = json_object_get(object, name);

    return json_is_integer(value) ? json_integer_value(value) : dflt;
}

void breaker_rule_read(struct breaker_rule *rule, const json_t *decl)
{
    const json_t *said = json_object_get(decl, "breaker");
    const json_t *rate = json_object_get(said, "rate");

    *rule = (struct breaker_rule){
        .policy = {.rate = rate ? json_number_value(rate) : 0.5,
                   .calls = (int)number_of(said, "calls", 10),
                   .window_us = number_of(said, "window_ms", 30000) * 1000,
                   .open_us = number_of(said, "open_ms", 10000) * 1000},
        .is_off = json_is_false(said),
    };
}

/* --- the lines ---------------------------------------------------------------- */

static void line_free(struct breakers *all, struct breaker_line *line)
{
    list_remove(&line->link);
    all->len--;
    free(line->handler);
    free(line->destination);
    free(line);
}

static void breakers_free(void *ptr)
{
    struct breakers *all = ptr;

    list_foreach_safe(at, &all->lines)
        line_free(all, CONTAINER_OF(at, struct breaker_line, link));
    free(all);
}

static struct breakers *breakers_of(struct runtime *rt)
{
    struct breakers *all = rt->parts[PART_BREAKERS].ptr;

    if (all)
        return all;
    all = xcalloc(1, sizeof(*all));
    list_init(&all->lines);
    rt->parts[PART_BREAKERS].ptr = all;
    rt->parts[PART_BREAKERS].free = breakers_free;
    return all;
}

/* Room by forgetting the one that was not used for longest, if it has nothing
 * to remember. */
static bool make_room(struct breakers *all)
{
    if (all->len < BREAKERS_MAX)
        return true;
    for (struct list *at = all->lines.prev; at != &all->lines; at = at->prev) {
        struct breaker_line *line = CONTAINER_OF(at, struct breaker_line, link);

        if (line->calls || line->breaker.state != BREAKER_CLOSED)
            continue;
        line_free(all, line);
        return true;
    }
    return false;
}

static struct breaker_line *line_new(struct breakers *all, struct runtime *rt,
                                     const char *handler,
                                     const char *destination)
{
    struct breaker_line *line;

    if (!make_room(all))
        return NULL;
    line = xcalloc(1, sizeof(*line));
    line->rt = rt;
    line->handler = xstrdup(handler);
    line->destination = xstrdup(destination);
    list_init(&line->link);
    all->len++;
    return line;
}

static struct breaker_line *line_of(struct runtime *rt, const char *handler,
                                    const char *destination)
{
    struct breakers *all = breakers_of(rt);
    struct breaker_line *line = NULL;

    list_foreach(at, &all->lines) {
        line = CONTAINER_OF(at, struct breaker_line, link);
        if (strcmp(line->destination, destination) == 0 &&
            strcmp(line->handler, handler) == 0)
            break;
        line = NULL;
    }
    if (!line && !(line = line_new(all, rt, handler, destination)))
        return NULL;
    list_remove(&line->link);
    list_insert(all->lines.next, &line->link);
    return line;
}

/* --- calls ---------------------------------------------------------------------- */

static void refuse(struct task *task, const struct breaker_line *line,
                   int64_t now_us)
{
    int64_t until =
        now_us + breaker_wait_us(&line->breaker, &line->policy, now_us);

    if (until > task->refused_until_us)
        task->refused_until_us = until;
}

bool breakers_enter(struct task *task, const char *destination,
                    struct breaker_call *call)
{
    const struct vm *vm = task->vm;
    int64_t now_us = clock_mono_us();
    struct breaker_line *line;

    *call = (struct breaker_call){.task = task};
    if (vm->breaker.is_off || vm->rt->mode != MODE_PERFORM)
        return true;
    line = line_of(vm->rt, vm->name, destination);
    if (!line)
        return true;
    line->policy = vm->breaker.policy;
    if (!breaker_enter(&line->breaker, now_us, &call->ticket)) {
        refuse(task, line, now_us);
        return false;
    }
    call->line = line;
    line->calls++;
    return true;
}

void breakers_leave(struct breaker_call *call, enum breaker_result result)
{
    struct breaker_line *line = call->line;
    bool was_closed;

    if (!line)
        return;
    call->line = NULL;
    line->calls--;
    was_closed = line->breaker.state == BREAKER_CLOSED;
    breaker_leave(&line->breaker, &line->policy, call->ticket, result,
                  clock_mono_us(), random_u64());
    if (was_closed != (line->breaker.state == BREAKER_CLOSED))
        metrics_breaker(line->rt->metrics, line->handler, line->destination,
                        was_closed);
}

void breakers_drop(struct breaker_call *call)
{
    if (call->line)
        breakers_leave(call, task_left_ms(call->task) <= 0 ? BREAKER_FAILED
                                                           : BREAKER_UNKNOWN);
}

int push_breaker_open(lua_State *L, const char *destination)
{
    return push_err(L, CLASS_TRANSIENT, "breaker_open",
                    "%s has failed too often lately and is not asked for a "
                    "while",
                    destination);
}
