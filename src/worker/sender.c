#include "worker/sender.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

struct unsent {
    struct list link;
    enum msg_kind kind;
    uint32_t id;
    bool ok;
    char *text;
    size_t len;
};

void sender_init(struct sender *s, struct channel *ch)
{
    s->wake_host_fd = ch->wake_host_fd;
    list_init(&s->unsent);
    ring_writer_init(&s->up, &ch->control->up, ch->up, ch->control->up_size);
}

void sender_show(struct sender *s)
{
    ring_publish(&s->up);
    if (ring_writer_should_wake(&s->up))
        channel_wake(s->wake_host_fd);
}

/* Kept messages are whole messages as they go into the ring. */
static void keep_unsent(struct sender *s, enum msg_kind kind, uint32_t id,
                        bool ok, const void *bytes, size_t len)
{
    struct unsent *u = xcalloc(1, sizeof(*u));

    u->kind = kind;
    u->id = id;
    u->ok = ok;
    u->text = xmalloc(len + 1);
    memcpy(u->text, bytes, len);
    u->len = len;
    list_append(&s->unsent, &u->link);
    s->is_blocked = true;
}

void sender_text(struct sender *s, enum msg_kind kind, uint32_t id, bool ok,
                 struct slice text)
{
    size_t max = ring_max_message(&s->up) - sizeof(struct msg_text) - 64;

    if (text.len > max)
        text.len = max;
    if (s->is_blocked || !write_text(&s->up, kind, id, ok, text))
        keep_unsent(s, kind, id, ok, text.ptr, text.len);
}

/* A verdict with its texts in one block, for later. */
static void keep_verdict(struct sender *s, const struct verdict_msg *v)
{
    size_t size = sizeof(*v) + v->code.len + v->reason.len + v->traceback.len;
    char *block = xmalloc(size), *at = block + sizeof(*v);
    struct verdict_msg copy = *v;
    struct slice *texts[] = {&copy.code, &copy.reason, &copy.traceback};

    for (int i = 0; i < 3; i++) {
        if (texts[i]->len)
            memcpy(at, texts[i]->ptr, texts[i]->len);
        at += texts[i]->len;
    }
    memcpy(block, &copy, sizeof(copy));
    keep_unsent(s, MSG_VERDICT, 0, true, block, size);
    free(block);
}

static bool write_kept(struct sender *s, const struct unsent *u)
{
    struct verdict_msg v;
    const char *at = u->text + sizeof(v);

    if (u->kind != MSG_VERDICT)
        return write_text(&s->up, u->kind, u->id, u->ok,
                          (struct slice){u->text, u->len});
    memcpy(&v, u->text, sizeof(v));
    v.code.ptr = at;
    v.reason.ptr = v.code.ptr + v.code.len;
    v.traceback.ptr = v.reason.ptr + v.reason.len;
    return write_verdict(&s->up, &v);
}

bool sender_unblock(struct sender *s)
{
    while (!list_is_empty(&s->unsent)) {
        struct unsent *u = CONTAINER_OF(s->unsent.next, struct unsent, link);

        if (!write_kept(s, u))
            return false;
        list_remove(&u->link);
        free(u->text);
        free(u);
    }
    s->is_blocked = false;
    return true;
}

void sender_verdict(struct sender *s, const struct verdict_msg *v)
{
    if (s->is_blocked || !write_verdict(&s->up, v))
        keep_verdict(s, v);
}
