/*
 * What a worker says to its host: straight into the ring, shown once a batch.
 * While the ring is full, what found no room is kept here in its order, and
 * the worker reads nothing more until the host has made room.
 */
#ifndef MT_WORKER_SENDER_H
#define MT_WORKER_SENDER_H

#include "base/list.h"
#include "ipc/channel.h"
#include "ipc/msg.h"

struct sender {
    struct ring_writer up;
    int wake_host_fd;
    struct list unsent; /* texts and verdicts that found no room */
    bool is_blocked;
};

void sender_init(struct sender *s, struct channel *ch);
/* A text longer than the ring takes is cut. */
void sender_text(struct sender *s, enum msg_kind kind, uint32_t id, bool ok,
                 struct slice text);
void sender_verdict(struct sender *s, const struct verdict_msg *v);
/* Show what was written to the host, and wake it if it sleeps. */
void sender_show(struct sender *s);
/* Try what was kept again; true when nothing is left. */
bool sender_unblock(struct sender *s);

#endif
