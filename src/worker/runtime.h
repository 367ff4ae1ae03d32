/*
 * What all VMs of one process share: the loop, the settings, how effects are
 * treated, and the way out to the host. A worker has one for its life; the
 * probe makes one for a dry run or a spec.
 */
#ifndef MT_WORKER_RUNTIME_H
#define MT_WORKER_RUNTIME_H

#include "base/list.h"
#include "base/slice.h"
#include "ipc/channel.h"
#include "ipc/msg.h"
#include "worker/doc.h"
#include "worker/journal.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct doc_parser;
struct scan;
struct ev_loop;
struct metrics_out;
struct record;
struct runtime;
struct task;
struct vm;
struct watchdog;

/* Things that C modules keep for the whole process: pools, curl's multi
 * handle. Each is made when first wanted and freed with the runtime. */
enum runtime_part {
    PART_DB,
    PART_HTTP,
    PART_MAIL,
    PART_EVENTS,
    PART_BREAKERS,
    PART_COUNT
};

/* What runs now, for the watchdog: an odd number is a run. */
struct run_mark {
    _Atomic uint64_t number;
    struct vm *_Atomic vm;
};

struct runtime {
    struct run_mark mark;
    struct channel_control *control; /* NULL in the probe */
    struct watchdog *watchdog;
    struct ev_loop *loop;
    json_t *settings; /* flat or nested object as the host sent it */
    const char *node; /* name of the host, for application_name */
    int index;        /* of this worker */
    enum effect_mode mode;
    struct channel_backend *backends; /* CHANNEL_BACKENDS, or NULL (probe) */

    /* Ask the host; the reply comes with runtime_reply() and this id. NULL:
     * there is none (probe). False: no room in the ring for now. */
    bool (*call)(struct runtime *rt, uint32_t id, struct slice request);

    /* A delivery's verdict; the worker sends it, the probe keeps it. `task` is
     * whose run it was, NULL for one that was not run. */
    void (*verdict)(struct runtime *rt, const struct verdict_msg *v,
                    struct task *task);
    /* The next message is one delivery, for this vm: take it, and hold the
     * record. May be NULL. */
    bool (*next)(struct runtime *rt, uint32_t vm, struct record **record,
                 struct delivery_msg *d);
    int64_t now_us; /* monotonic, as of the last delivery's end */

    struct {
        void *ptr;
        void (*free)(void *ptr);
    } parts[PART_COUNT];

    struct doc_parser *parser;   /* of all documents, see doc.h */
    struct scan *scan;           /* for event.raw */
    struct doc scratch;          /* while a text is being decoded */
    struct metrics_out *metrics; /* counted here, sent by the worker */
    struct list spare_events;    /* see event.h */
    struct list spare_records;   /* see record.h */
    struct vm *vms;              /* all that live */
    struct list calls;           /* asked of the host, not yet answered */
    uint32_t last_call;
    void *owner; /* the worker or the probe */
};

void runtime_init(struct runtime *rt, struct ev_loop *loop, json_t *settings);
void runtime_fini(struct runtime *rt);

/* A setting by its dotted name: "database.url". NULL when it is absent. */
const json_t *runtime_setting(const struct runtime *rt, const char *name);
const char *runtime_text(const struct runtime *rt, const char *name,
                         const char *dflt);

/* "databases" (name → connected), "raised", "stored" of MSG_METRICS. */
void runtime_database_state(struct runtime *rt, const char *name,
                            bool connected);
void runtime_raised(struct runtime *rt, const char *aggregate_type,
                    const char *type);
void runtime_stored(struct runtime *rt, double seconds);

/* The host's answer to a call; unknown ids are ignored. */
void runtime_reply(struct runtime *rt, uint32_t id, bool ok,
                   struct slice answer);

#endif
