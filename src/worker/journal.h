/*
 * The effects journal: everything a handler does outside itself passes here.
 *
 * perform   effects happen; they are counted by handler, class and result.
 * record    dry run: SQL really runs, in a transaction that is rolled back;
 *           what leaves the database is remembered with its arguments and
 *           answered from a given answer, else with a neutral result.
 * test      as record, but SQL does not run either: specs need no server.
 */
#ifndef MT_WORKER_JOURNAL_H
#define MT_WORKER_JOURNAL_H

#include <stdbool.h>

struct lua_State;

enum effect_mode { MODE_PERFORM, MODE_RECORD, MODE_TEST };

#define EFFECT_CLASSES(X) \
    X(SQL, "sql")         \
    X(HTTP, "http")       \
    X(MAIL, "mail")       \
    X(KAFKA, "kafka")     \
    X(REDIS, "redis")     \
    X(EVENTS, "events")   \
    X(STATE, "state")     \
    X(METRIC, "metric")

enum effect_class {
#define X(id, name) EFFECT_##id,
    EFFECT_CLASSES(X)
#undef X
        EFFECT_COUNT,
};

const char *effect_class_name(enum effect_class class);

enum effect_mode journal_mode(struct lua_State *L);

/*
 * Say what is about to be done: `name` as in "http.post", arguments as a value
 * at stack index `args` (a table, or 0 for none). In record and test mode it is
 * remembered. True when the effect must not be performed: its answer is then on
 * the stack, [-0, +2]: result and error, both nil when none was given and the
 * caller's neutral result counts. SQL in record mode answers false: run it.
 * Also in Lua: host.effect(class, name, args) → true, result, err | false.
 */
bool journal_effect(struct lua_State *L, enum effect_class class,
                    const char *name, int args);

/* Count a performed effect's end. In Lua: host.effect_done(class, ok). */
void journal_done(struct lua_State *L, enum effect_class class, bool ok);

#endif
