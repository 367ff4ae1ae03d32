/*
 * One direction between host and worker: a byte ring in shared memory with one
 * producer and one consumer, messages in their order, nothing copied but the
 * message itself.
 *
 * The memory is mapped twice in a row, so a message is contiguous whereever it
 * lies, and MSG_PADDING bytes after it can be read. Neither side trusts the
 * other: indices and lengths read from shared memory are checked before use,
 * and a bad one ends the reading with an error, not the process.
 *
 * A sleeping side is woken through an eventfd, and only when it said that it
 * sleeps. Whoever publishes tests `*_should_wake()` and writes the eventfd.
 */
#ifndef MT_IPC_RING_H
#define MT_IPC_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* In shared memory; both sides map it. Indices count bytes since the start. */
struct ring_shared {
    _Alignas(64) _Atomic uint64_t head; /* written by the producer */
    _Atomic uint32_t producer_waits;    /* for space */
    _Alignas(64) _Atomic uint64_t tail; /* written by the consumer */
    _Atomic uint32_t consumer_sleeps;
};

struct ring_writer {
    struct ring_shared *shared;
    char *data;
    uint64_t size;      /* bytes, a power of two */
    uint64_t head;      /* ours; what is published may lag */
    uint64_t seen_tail; /* the consumer's, as last read */
};

struct ring_reader {
    struct ring_shared *shared;
    const char *data;
    uint64_t size;
    uint64_t tail;      /* ours; what is released may lag */
    uint64_t seen_head; /* the producer's, as last read */
};

/* Every message starts with this. */
struct msg_head {
    uint32_t len; /* with this head; the next message starts 8-aligned */
    uint16_t kind;
    uint16_t flags;
};

#define MSG_PADDING \
    64 /* readable bytes after a message (simdjson needs them) */

void ring_writer_init(struct ring_writer *w, struct ring_shared *shared,
                      void *data, uint64_t size);
void ring_reader_init(struct ring_reader *r, struct ring_shared *shared,
                      const void *data, uint64_t size);

/* Room for a message of `len` bytes, or NULL when the ring is full for now.
 * The head's len is filled in. Not seen by the consumer before publish. */
void *ring_reserve(struct ring_writer *w, uint32_t kind, size_t len);

/* The largest message that an empty ring takes. */
size_t ring_max_message(const struct ring_writer *w);

/* Shrink the message just reserved to `len` bytes. */
void ring_trim(struct ring_writer *w, struct msg_head *msg, size_t len);

/* Show everything reserved so far to the consumer. */
void ring_publish(struct ring_writer *w);
/* After publish: true when the consumer sleeps (and is now being woken). */
bool ring_writer_should_wake(struct ring_writer *w);
/* Ask to be woken when space comes free; true when there is some already. */
bool ring_writer_wait(struct ring_writer *w);
/* Bytes written and not yet released by the consumer. */
uint64_t ring_writer_used(struct ring_writer *w);

enum ring_read { RING_EMPTY, RING_MESSAGE, RING_BROKEN };

/* The next message, valid until ring_release(), and its checked length: the
 * one in the message may be changed by the other side. RING_BROKEN: the other side
 * wrote nonsense; nothing more can be read. */
enum ring_read ring_next(struct ring_reader *r, const struct msg_head **msg,
                         size_t *len);
/* Give the bytes of all messages read so far back to the producer. */
void ring_release(struct ring_reader *r);
/* After release: true when the producer waits for space (and is woken now). */
bool ring_reader_should_wake(struct ring_reader *r);
/* Say that we sleep; false (and not sleeping) when something is there. */
bool ring_reader_sleep(struct ring_reader *r);
void ring_reader_wakeup(struct ring_reader *r);

#endif
