#include "ipc/ring.h"

#include "base/check.h"

#include <string.h>

static uint64_t align8(uint64_t n)
{
    return (n + 7) & ~(uint64_t)7;
}

void ring_writer_init(struct ring_writer *w, struct ring_shared *shared,
                      void *data, uint64_t size)
{
    CHECK(size && (size & (size - 1)) == 0);
    *w = (struct ring_writer){.shared = shared, .data = data, .size = size};
}

void ring_reader_init(struct ring_reader *r, struct ring_shared *shared,
                      const void *data, uint64_t size)
{
    CHECK(size && (size & (size - 1)) == 0);
    *r = (struct ring_reader){.shared = shared, .data = data, .size = size};
}

size_t ring_max_message(const struct ring_writer *w)
{
    return w->size - MSG_PADDING;
}

/* A tail outside [head - size, head] would be a lie: keep the old one. */
static void look_at_tail(struct ring_writer *w)
{
    uint64_t tail =
        atomic_load_explicit(&w->shared->tail, memory_order_acquire);

    if (tail - w->seen_tail <= w->head - w->seen_tail)
        w->seen_tail = tail;
}

void *ring_reserve(struct ring_writer *w, uint32_t kind, size_t len)
{
    uint64_t need = align8(len);
    struct msg_head *msg;

    CHECK(len >= sizeof(*msg) && len <= ring_max_message(w));
    if (w->head - w->seen_tail + need + MSG_PADDING > w->size) {
        look_at_tail(w);
        if (w->head - w->seen_tail + need + MSG_PADDING > w->size)
            return NULL;
    }
    msg = (struct msg_head *)(void *)(w->data + (w->head & (w->size - 1)));
    msg->len = (uint32_t)len;
    msg->kind = (uint16_t)kind;
    msg->flags = 0;
    w->head += need;
    return msg;
}

void ring_trim(struct ring_writer *w, struct msg_head *msg, size_t len)
{
    CHECK(len <= msg->len && len >= sizeof(*msg));
    w->head -= align8(msg->len) - align8(len);
    msg->len = (uint32_t)len;
}

void ring_publish(struct ring_writer *w)
{
    atomic_store_explicit(&w->shared->head, w->head, memory_order_seq_cst);
}

bool ring_writer_should_wake(struct ring_writer *w)
{
    return atomic_load_explicit(&w->shared->consumer_sleeps,
                                memory_order_seq_cst) &&
           atomic_exchange(&w->shared->consumer_sleeps, 0);
}

bool ring_writer_wait(struct ring_writer *w)
{
    uint64_t before;

    look_at_tail(w);
    before = w->seen_tail;
    atomic_store(&w->shared->producer_waits, 1);
    look_at_tail(w);
    return w->seen_tail != before;
}

uint64_t ring_writer_used(struct ring_writer *w)
{
    look_at_tail(w);
    return w->head - w->seen_tail;
}

enum ring_read ring_next(struct ring_reader *r, const struct msg_head **msg,
                         size_t *msg_len)
{
    const struct msg_head *m;
    uint64_t there;
    uint32_t len;

    if (r->tail == r->seen_head) {
        r->seen_head =
            atomic_load_explicit(&r->shared->head, memory_order_acquire);
        if (r->tail == r->seen_head)
            return RING_EMPTY;
    }
    there = r->seen_head - r->tail;
    if (there > r->size || there < sizeof(*m) || (there & 7))
        return RING_BROKEN;
    m = (const struct msg_head *)(const void *)(r->data +
                                                (r->tail & (r->size - 1)));
    len = *(const volatile uint32_t *)&m->len;
    if (len < sizeof(*m) || align8(len) > there)
        return RING_BROKEN;
    r->tail += align8(len);
    *msg = m;
    *msg_len = len;
    return RING_MESSAGE;
}

void ring_release(struct ring_reader *r)
{
    atomic_store_explicit(&r->shared->tail, r->tail, memory_order_seq_cst);
}

bool ring_reader_should_wake(struct ring_reader *r)
{
    return atomic_load_explicit(&r->shared->producer_waits,
                                memory_order_seq_cst) &&
           atomic_exchange(&r->shared->producer_waits, 0);
}

bool ring_reader_sleep(struct ring_reader *r)
{
    atomic_store(&r->shared->consumer_sleeps, 1);
    if (atomic_load(&r->shared->head) == r->tail)
        return true;
    ring_reader_wakeup(r);
    return false;
}

void ring_reader_wakeup(struct ring_reader *r)
{
    atomic_store_explicit(&r->shared->consumer_sleeps, 0, memory_order_relaxed);
}
