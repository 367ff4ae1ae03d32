/*
 * bench_fill BROKERS TOPIC EVENTS PARTITIONS KEYS SIZE [headers]
 *
 * Makes the topic and fills it with the samples, keyed by aggregate.
 */
#include "topic.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    static struct sample s;
    rd_kafka_t *rk;
    long events;

    if (argc < 7) {
        fputs("bench_fill BROKERS TOPIC EVENTS PARTITIONS KEYS SIZE "
              "[headers]\n",
              stderr);
        return 2;
    }
    events = atol(argv[3]);
    rk = topic_connect(argv[1], "20");
    topic_make(rk, argv[2], atoi(argv[4]));
    for (long i = 0; i < events; i++) {
        sample_make(&s, (uint64_t)i, (uint64_t)atol(argv[5]),
                    (size_t)atol(argv[6]));
        topic_put(rk, argv[2], &s, argc > 7);
        if (i % 1000 == 0)
            rd_kafka_poll(rk, 0);
    }
    topic_end(rk);
    return 0;
}
