/*
 * Positions that move with what the handler produces (transaction = "kafka"),
 * before a store of positions for all others.
 *
 * What deliveries give out is held until the handler's position passes them;
 * saving that position is a Kafka transaction with the records and the offset
 * of the group <group>.<handler>. The ordinary store is told afterwards: it has
 * the rows of dead letters' fences, and where the handler stood before it ran in
 * transactions, and after.
 */
#ifndef MT_STORES_POSITIONS_KAFKA_H
#define MT_STORES_POSITIONS_KAFKA_H

#include "stores/held.h"
#include "stores/positions.h"

/* These are in Kafka for good. */
typedef void positions_written_fn(void *arg,
                                  const struct kafka_outputs *outputs);

/* Takes `inner` over. `kafka` must outlive it. */
struct positions *positions_kafka_new(struct ev_loop *loop,
                                      const struct kafka_settings *kafka,
                                      struct positions *inner,
                                      positions_written_fn *written, void *arg);

/* Held at a place of a handler and a partition (their names); `outputs` is empty
 * afterwards. */
void positions_kafka_put(struct positions *pub, const char *handler,
                         const char *partition, int64_t place,
                         struct kafka_outputs *outputs);
void positions_kafka_drop(struct positions *pub, const char *handler,
                          const char *partition, int64_t place);
/* What is held there; NULL: nothing ever was. */
const struct held *positions_kafka_held(const struct positions *pub,
                                        const char *handler,
                                        const char *partition);
/* The partition is closed: nothing is asked about it any more, what is held is
 * forgotten and comes again where its events do. */
void positions_kafka_close(struct positions *pub, const char *partition);

#endif
