/* One delivery of a handler with effects, for its tests. */
#ifndef WORKER_EFFECTS_H
#define WORKER_EFFECTS_H

#include "worker_harness.h"

#include "base/buf.h"

#define SCHEMA "mt_test_effects"

__attribute__((unused)) static void set(struct harness *h, const char *name,
                                        const char *value)
{
    json_object_set_new(h->rt.settings, name, json_string(value));
}

__attribute__((unused)) static struct seen
run(const char *body, const char *decl, const char *mail_url)
{
    char *source = xasprintf("local db, http, mail, events = require"
                             " 'moontide.db', require 'moontide.http', require"
                             " 'moontide.mail', require 'moontide.events'\n"
                             "return { handle = function(event, ctx) %s end }",
                             body);
    const char *url = getenv("MOONTIDE_TEST_PG");
    struct harness h;
    struct seen seen;

    harness_init(&h, source, decl);
    if (!h.is_loaded)
        fail_msg("%s", h.load_error);
    if (url)
        set(&h, "database.url", url);
    set(&h, "database.schema", SCHEMA);
    set(&h, "mail.from", "Moon Tide <tide@example.com>");
    if (mail_url)
        set(&h, "mail.url", mail_url);
    harness_offer(&h, 1, 1, 0, "{\"a\":1}");
    harness_wait(&h, 1);
    seen = h.seen[0];
    harness_fini(&h);
    free(source);
    return seen;
}

__attribute__((unused)) static void assert_ack(struct seen seen)
{
    if (seen.verdict != VERDICT_ACK)
        fail_msg("%s: %s %s", verdict_name(seen.verdict), seen.reason,
                 seen.traceback);
}

#endif
