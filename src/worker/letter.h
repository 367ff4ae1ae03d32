/*
 * A dead letter as the host's API gives it, as the event it was: for a dry run.
 */
#ifndef MT_WORKER_LETTER_H
#define MT_WORKER_LETTER_H

#include "base/err.h"
#include "ipc/msg.h"

#include <jansson.h>

struct letter {
    struct event_msg m; /* points into `bytes` and the JSON */
    char *bytes;
};

/* `json`: {format, facts, source, partition, place, bodyHex}, borrowed for as
 * long as the letter. */
bool letter_read(struct letter *letter, const json_t *json,
                 struct err *err) MUST_CHECK;
void letter_fini(struct letter *letter);

#endif
