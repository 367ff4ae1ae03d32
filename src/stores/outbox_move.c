#include "stores/outbox_move.h"

#include "base/mem.h"
#include "pg/pg.h"

#include <stdlib.h>

static const char move_sql[] =
    "SELECT moontide_outbox_move($1::regclass, $2::boolean, $3, $4)";

struct moving {
    outbox_move_fn *done;
    void *arg;
};

static void on_moved(void *arg, const struct pg_result *res,
                     const struct err *err)
{
    struct moving *moving = arg;

    moving->done(moving->arg,
                 err ? NULL : json_loads(pg_result_value(res, 0, 0), 0, NULL),
                 err);
    free(moving);
}

void outbox_move(struct pg_pool *pool, const struct outbox_move *move,
                 outbox_move_fn *done, void *arg)
{
    struct moving *moving = xmalloc(sizeof(*moving));

    *moving = (struct moving){done, arg};
    pg_pool_query(pool, move_sql, 4,
                  (struct pg_param[]){{.value = move->table},
                                      {.value = move->is_latest ? "t" : "f"},
                                      {.value = move->reason},
                                      {.value = move->who}},
                  on_moved, moving);
}
