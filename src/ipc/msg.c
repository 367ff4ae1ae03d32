#include "ipc/msg.h"

#include "base/check.h"
#include "ipc/channel.h"

#include <string.h>

static const char *const kinds[SOURCE_KIND_COUNT] = {"kafka", "outbox",
                                                     "redrive"};

const char *source_kind_name(enum source_kind kind)
{
    CHECK((unsigned)kind < SOURCE_KIND_COUNT);
    return kinds[kind];
}

static char *put(char *at, struct slice s)
{
    if (s.len && s.ptr)
        memcpy(at, s.ptr, s.len);
    return at + s.len;
}

size_t deliver_size(const struct event_msg *ev, size_t n)
{
    size_t size = sizeof(struct msg_deliver) + n * sizeof(struct delivery_msg) +
                  ev->topic.len + ev->partition.len + ev->body.len;

    for (int i = 0; i < FACT_COUNT; i++)
        size += ev->facts[i].len;
    return size;
}

bool write_deliver(struct ring_writer *w, const struct event_msg *ev,
                   const struct delivery_msg *to, size_t n)
{
    struct msg_deliver *m = ring_reserve(w, MSG_DELIVER, deliver_size(ev, n));
    char *at;

    CHECK(n > 0 && n <= DELIVER_MAX);
    if (!m)
        return false;
    m->place = ev->place;
    m->arrived_us = ev->arrived_us;
    m->source = (uint16_t)ev->source;
    m->form = (uint16_t)ev->form;
    m->n = (uint32_t)n;
    m->topic_len = (uint32_t)ev->topic.len;
    m->partition_len = (uint32_t)ev->partition.len;
    m->body_len = (uint32_t)ev->body.len;
    m->unused = 0;
    memcpy(m->bytes, to, n * sizeof(*to));
    at = m->bytes + n * sizeof(*to);
    at = put(put(at, ev->topic), ev->partition);
    for (int i = 0; i < FACT_COUNT; i++) {
        m->fact_len[i] =
            ev->facts[i].ptr ? (uint32_t)ev->facts[i].len : FACT_ABSENT;
        at = put(at, ev->facts[i]);
    }
    put(at, ev->body);
    return true;
}

/* The next `len` bytes of a message, or false when they are not there. */
static bool take(const char **at, size_t *left, size_t len, struct slice *s)
{
    if (len > *left)
        return false;
    *s = (struct slice){*at, len};
    *at += len;
    *left -= len;
    return true;
}

/* The fixed part, copied: a worker may still write. `left`: bytes after it. */
static bool copy_fixed(const struct msg_head *msg, size_t len, void *fixed,
                       size_t size, size_t *left)
{
    if (len < size)
        return false;
    memcpy(fixed, msg, size);
    *left = len - size;
    return true;
}

static bool take_facts(const struct msg_deliver *m, const char **at,
                       size_t *left, struct slice facts[FACT_COUNT])
{
    for (int i = 0; i < FACT_COUNT; i++) {
        if (m->fact_len[i] == FACT_ABSENT)
            facts[i] = (struct slice){NULL, 0};
        else if (!take(at, left, m->fact_len[i], &facts[i]))
            return false;
    }
    return true;
}

/* The host wrote it, and nobody else can: it is read where it lies. */
bool read_deliver(const struct msg_head *msg, size_t len, struct event_msg *ev,
                  const struct delivery_msg **to, size_t *n)
{
    const struct msg_deliver *m = (const void *)msg;
    size_t left = len - sizeof(*m);
    const char *at = m->bytes;
    struct slice targets;

    if (len < sizeof(*m) || m->source >= SOURCE_KIND_COUNT ||
        m->form >= BODY_FORM_COUNT || m->n == 0 || m->n > DELIVER_MAX ||
        !take(&at, &left, m->n * sizeof(**to), &targets))
        return false;
    *to = (const void *)targets.ptr;
    *n = m->n;
    for (size_t i = 0; i < *n; i++)
        if ((*to)[i].slot >= CHANNEL_SLOTS)
            return false;
    ev->place = m->place;
    ev->arrived_us = m->arrived_us;
    ev->source = (enum source_kind)m->source;
    ev->form = (enum body_form)m->form;
    return take(&at, &left, m->topic_len, &ev->topic) &&
           take(&at, &left, m->partition_len, &ev->partition) &&
           take_facts(m, &at, &left, ev->facts) &&
           take(&at, &left, m->body_len, &ev->body);
}

static struct slice cut(struct slice s, size_t max)
{
    if (s.len > max)
        s.len = max;
    return s;
}

bool write_verdict(struct ring_writer *w, const struct verdict_msg *v)
{
    struct slice code = cut(v->code, CODE_MAX);
    struct slice reason = cut(v->reason, REASON_MAX);
    struct slice traceback = cut(v->traceback, TRACEBACK_MAX);
    struct msg_verdict *m = ring_reserve(
        w, MSG_VERDICT, sizeof(*m) + code.len + reason.len + traceback.len);

    if (!m)
        return false;
    m->head.flags = v->is_duplicate ? VERDICT_DUPLICATE : 0;
    m->slot = v->slot;
    m->generation = v->generation;
    m->verdict = (uint16_t)v->verdict;
    m->class = (uint16_t)v->class;
    m->code_len = (uint16_t)code.len;
    m->reason_len = (uint16_t)reason.len;
    m->traceback_len = (uint32_t)traceback.len;
    m->duration_us = v->duration_us;
    m->after_ms = v->after_ms;
    put(put(put(m->bytes, code), reason), traceback);
    return true;
}

bool read_verdict(const struct msg_head *msg, size_t len, struct verdict_msg *v)
{
    const char *at = ((const struct msg_verdict *)(const void *)msg)->bytes;
    struct msg_verdict m;
    size_t left;

    if (!copy_fixed(msg, len, &m, sizeof(m), &left))
        return false;
    if (m.verdict >= VERDICT_COUNT || m.class >= CLASS_COUNT ||
        m.reason_len > REASON_MAX || m.traceback_len > TRACEBACK_MAX ||
        m.code_len > CODE_MAX)
        return false;
    v->slot = m.slot;
    v->generation = m.generation;
    v->verdict = (enum verdict)m.verdict;
    v->class = (enum error_class)m.class;
    v->is_duplicate = m.head.flags & VERDICT_DUPLICATE;
    v->duration_us = m.duration_us;
    v->after_ms = m.after_ms;
    return take(&at, &left, m.code_len, &v->code) &&
           take(&at, &left, m.reason_len, &v->reason) &&
           take(&at, &left, m.traceback_len, &v->traceback);
}

bool write_text(struct ring_writer *w, enum msg_kind kind, uint32_t id, bool ok,
                struct slice text)
{
    struct msg_text *m = ring_reserve(w, kind, sizeof(*m) + text.len);

    if (!m)
        return false;
    m->id = id;
    m->ok = ok;
    m->len = (uint32_t)text.len;
    m->unused = 0;
    put(m->text, text);
    return true;
}

bool read_text(const struct msg_head *msg, size_t len, uint32_t *id, bool *ok,
               struct slice *text)
{
    const char *at = ((const struct msg_text *)(const void *)msg)->text;
    struct msg_text m;
    size_t left;

    if (!copy_fixed(msg, len, &m, sizeof(m), &left))
        return false;
    *id = m.id;
    *ok = m.ok;
    return take(&at, &left, m.len, text);
}
