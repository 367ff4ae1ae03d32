/*
 * The messages in the rings. Fixed part first, then bytes whose lengths the
 * fixed part gives. Readers are bounds-checked; the host's reader of what a
 * worker wrote copies the fixed part before it looks at it.
 *
 *   host → worker   MSG_LOAD MSG_UNLOAD MSG_DELIVER MSG_REPLY MSG_DRAIN
 *   worker → host   MSG_READY MSG_LOADED MSG_UNLOADED MSG_VERDICT MSG_CALL
 *                   MSG_METRICS
 *
 * A vm id names one loaded (handler, version); the host chooses it, never
 * twice for one worker. A delivery is named by slot and generation: the slot
 * is below CHANNEL_SLOTS, the generation makes a late verdict harmless.
 */
#ifndef MT_IPC_MSG_H
#define MT_IPC_MSG_H

#include "base/slice.h"
#include "base/words.h"
#include "ipc/ring.h"

enum msg_kind {
    MSG_LOAD = 1, /* struct msg_text: vm, the bundle as JSON */
    MSG_UNLOAD,   /* struct msg_text: vm; finish what runs, then MSG_UNLOADED */
    MSG_DELIVER,  /* struct msg_deliver */
    MSG_REPLY,    /* struct msg_text: id of the call, ok, a JSON answer */
    MSG_DRAIN,    /* struct msg_text: finish what runs, run on_unload, exit 0 */

    MSG_READY = 32, /* struct msg_text: the loop runs */
    MSG_LOADED,     /* struct msg_text: vm, ok, error text */
    MSG_UNLOADED,   /* struct msg_text: vm */
    MSG_VERDICT,    /* struct msg_verdict */
    MSG_CALL,    /* struct msg_text: id, a request {"op":…}; in parts, which
                       follow each other: all but the last with ok 0 */
    MSG_METRICS, /* struct msg_text: JSON, see metrics below */
};

/*
 * MSG_METRICS, sent a few times a second when there is news; numbers are what
 * was added since the last one, gauges their value:
 * { "effects": [[handler, class, result, n], …],
 *   "cpu": [[handler, version, seconds], …], "memory": [[handler, bytes], …],
 *   "raised": [[aggregate type, event type, n], …],
 *   "stored": [[seconds, n], …],               publish durations
 *   "databases": [[name, connected 0/1], …],
 *   "breakers": [[handler, destination, open 0/1], …],  those that changed
 *   "own": [{"kind":"counter|gauge|histogram","name":…,"help":…,
 *            "labels":{…},"value":n,"values":[n,…] for histograms}, …] }
 *
 * MSG_CALL requests are described in src/host/calls.c; the reply is JSON, with
 * ok 0 {"error":{class,code,message}}.
 */

struct msg_text {
    struct msg_head head;
    uint32_t id; /* vm id or call id */
    uint32_t ok; /* 1 or 0 */
    uint32_t len;
    uint32_t unused;
    char text[]; /* len bytes, not terminated */
};

/* flags of a delivery */
#define DELIVER_FRESH 1 /* nothing else of this lane is with the worker */
#define DELIVER_INBOX 2 /* parked, redriven or replayed: always the inbox */

enum source_kind { SOURCE_KAFKA, SOURCE_OUTBOX, SOURCE_REDRIVE };
#define SOURCE_KIND_COUNT 3
const char *source_kind_name(enum source_kind kind);

#define FACT_ABSENT UINT32_MAX

/* One event for some of its handlers: it crosses the ring once for all that
 * this worker runs. */
struct msg_deliver {
    struct msg_head head;
    int64_t place;          /* offset or seq */
    int64_t arrived_us;     /* CLOCK_MONOTONIC, when the host took the event */
    uint16_t source;        /* enum source_kind */
    uint16_t form;          /* enum body_form */
    uint32_t n;             /* deliveries, 1…DELIVER_MAX */
    uint32_t topic_len;     /* topic or table name */
    uint32_t partition_len; /* the position row's partition, e.g. orders/3 */
    uint32_t fact_len[FACT_COUNT]; /* or FACT_ABSENT */
    uint32_t body_len;
    uint32_t unused;
    char bytes[]; /* struct delivery_msg × n, topic, partition, facts in order,
                     body */
};

#define CALL_MAX (12u << 20) /* bytes of a MSG_CALL, all parts together */

#define DELIVER_MAX 16 /* deliveries of a message */

/* An event as plain data, for both ends. Slices point into the caller's memory
 * (writing) or into the message (reading). */
struct event_msg {
    int64_t place, arrived_us;
    enum source_kind source;
    enum body_form form;
    struct slice topic, partition;
    struct slice facts[FACT_COUNT];
    struct slice body;
};

/* What is a handler's own of it; lies in the ring as it is. */
struct delivery_msg {
    uint32_t slot, generation;
    uint32_t vm;
    uint16_t attempt; /* from 1 */
    uint16_t flags;   /* DELIVER_… */
    uint64_t lane;
    int64_t epoch; /* of the position row, for the fence */
};

#define REASON_MAX    4096 /* bytes of a verdict's reason */
#define TRACEBACK_MAX 8192
#define CODE_MAX      32

#define VERDICT_DUPLICATE 1 /* head.flags: the inbox knew it; not run */

struct msg_verdict {
    struct msg_head head;
    uint32_t slot, generation;
    uint16_t verdict; /* enum verdict */
    uint16_t class;   /* enum error_class, where it is a failure */
    uint16_t code_len;
    uint16_t reason_len;
    uint32_t traceback_len;
    uint32_t duration_us; /* from start to verdict, with waits */
    int64_t after_ms;     /* retry and snooze: wait this long; -1: the policy */
    char bytes[];         /* code, reason, traceback */
};

struct verdict_msg {
    uint32_t slot, generation;
    enum verdict verdict;
    enum error_class class;
    bool is_duplicate;
    uint32_t duration_us;
    int64_t after_ms;
    struct slice code, reason, traceback;
};

/* Bytes that an event with `n` deliveries needs in the ring. */
size_t deliver_size(const struct event_msg *ev, size_t n);

/* All writers: false when the ring is full. Not yet published. */
bool write_deliver(struct ring_writer *w, const struct event_msg *ev,
                   const struct delivery_msg *to, size_t n);
bool write_verdict(struct ring_writer *w, const struct verdict_msg *v);
bool write_text(struct ring_writer *w, enum msg_kind kind, uint32_t id, bool ok,
                struct slice text);

/* All readers take the length that ring_next() checked; false when lengths or enumerators make no sense. */
bool read_deliver(const struct msg_head *msg, size_t len, struct event_msg *ev,
                  const struct delivery_msg **to, size_t *n);
bool read_verdict(const struct msg_head *msg, size_t len,
                  struct verdict_msg *v);
bool read_text(const struct msg_head *msg, size_t len, uint32_t *id, bool *ok,
               struct slice *text);

#endif
