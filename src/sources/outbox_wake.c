/*
 * What tells of new rows before the next poll would. Nothing depends on it: a
 * bell that is lost costs a poll's interval.
 */
#include "base/log.h"
#include "pg/pg_tail.h"
#include "sources/outbox_priv.h"

#include <string.h>

#define CHANNEL     "moontide_outbox"
#define PUBLICATION "moontide_outbox"

static const char component[] = "outbox";

static void on_notify(void *arg, const char *channel, const char *payload)
{
    (void)channel;
    (void)payload;
    outbox_ring(arg);
}

static void on_commit(void *arg)
{
    outbox_ring(arg);
}

void outbox_check_wake(const struct outbox_source *s, bool has_trigger,
                       bool has_publication)
{
    const char *lacks = s->wants_notify && !has_trigger ? "notify"
                        : s->tail && !has_publication   ? "wal"
                                                        : NULL;

    if (lacks)
        log_warn("nothing tells of commits, so the outbox is polled",
                 "table=%s do=\"SELECT moontide_outbox_wake('%s', '%s')\"",
                 s->table, lacks, s->table);
}

bool outbox_listen(struct outbox_source *s, const struct outbox_options *opts,
                   struct err *err)
{
    if (strcmp(opts->wake, "poll") == 0)
        return true;
    if (strcmp(opts->wake, "notify") == 0) {
        s->wants_notify = true;
        pg_pool_listen(s->pool, CHANNEL, on_notify, s);
        return true;
    }
    if (strcmp(opts->wake, "wal") != 0)
        return err_set(err, ERR_PERMANENT,
                       "outbox.wake: '%s' is not poll, notify or wal",
                       opts->wake);
    s->tail = pg_tail_new(s->loop, opts->url, PUBLICATION, on_commit, s, err);
    return s->tail != NULL;
}
