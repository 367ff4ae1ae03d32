/*
 * bench_send RATE EVENTS KEYS kafka BROKERS TOPIC [LINGER_MS]
 * bench_send RATE EVENTS KEYS outbox URL
 *
 * Sends evenly, a millisecond's worth at a time; a rate of 0 is as fast as it
 * goes. Each event says when it was sent: occurred_at, by the wall clock. Into
 * an outbox, what is due goes in one COPY, which is one transaction. Prints
 * one line of JSON; `late_ms` is how far it fell behind its own plan.
 */
#include "base/clock.h"
#include "topic.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DIFFERENT 4096 /* samples */
#define A_TURN    1000 /* events at most */

/* librdkafka's default: what a producer has that nobody tuned. */
#define LINGER_MS "5"

struct sink {
    rd_kafka_t *rk;
    const char *topic;
    PGconn *conn;
};

static struct sample samples[DIFFERENT];

static void need(const struct sink *sink, bool ok)
{
    if (ok)
        return;
    fputs(PQerrorMessage(sink->conn), stderr);
    exit(1);
}

static const struct sample *next(long number)
{
    struct sample *s = &samples[number % DIFFERENT];

    sample_stamp(s, clock_wall_us());
    return s;
}

static void to_kafka(struct sink *sink, long from, long to)
{
    for (long i = from; i < to; i++)
        topic_put(sink->rk, sink->topic, next(i), false);
    rd_kafka_poll(sink->rk, 0);
}

/* Our samples hold nothing that COPY's text format would escape. */
static void to_outbox(struct sink *sink, long from, long to)
{
    static char row[sizeof(samples[0].value) + 256];

    PQclear(PQexec(sink->conn,
                   "COPY domain_events (aggregate_id, aggregate_type,"
                   " event_type, event_version, event_data, occurred_at)"
                   " FROM STDIN"));
    for (long i = from; i < to; i++) {
        const struct sample *s = next(i);
        size_t len;
        const char *body = sample_payload(s, &len);
        int n = snprintf(row, sizeof(row), "%s\tOrder\t%s\t1\t%.*s\t%s\n",
                         s->key, s->type, (int)len, body, s->occurred_at);

        need(sink, PQputCopyData(sink->conn, row, n) == 1);
    }
    need(sink, PQputCopyEnd(sink->conn, NULL) == 1);
    for (PGresult *res; (res = PQgetResult(sink->conn)) != NULL; PQclear(res))
        need(sink, PQresultStatus(res) == PGRES_COMMAND_OK);
}

/* How many are due by now. */
static long due(int64_t start_us, double rate, long events)
{
    double n = (double)(clock_mono_us() - start_us) * rate / 1e6;

    return rate <= 0 || n > (double)events ? events : (long)n;
}

static double send_all(struct sink *sink, double rate, long events)
{
    int64_t start_us = clock_mono_us();
    long late = 0;

    for (long sent = 0, to; sent < events; sent = to) {
        to = due(start_us, rate, events);
        if (to - sent > late && rate > 0)
            late = to - sent;
        if (to > sent + A_TURN)
            to = sent + A_TURN;
        if (to == sent)
            usleep(1000);
        else if (sink->rk)
            to_kafka(sink, sent, to);
        else
            to_outbox(sink, sent, to);
    }
    return rate > 0 ? (double)late / rate * 1e3 : 0;
}

static bool connect_sink(struct sink *sink, int argc, char **argv)
{
    if (argc >= 7 && strcmp(argv[4], "kafka") == 0) {
        sink->rk = topic_connect(argv[5], argc > 7 ? argv[7] : LINGER_MS);
        sink->topic = argv[6];
    } else if (argc == 6 && strcmp(argv[4], "outbox") == 0) {
        sink->conn = PQconnectdb(argv[5]);
        need(sink, PQstatus(sink->conn) == CONNECTION_OK);
    }
    return sink->rk || sink->conn;
}

int main(int argc, char **argv)
{
    long events = argc > 3 ? atol(argv[2]) : 0;
    struct sink sink = {0};
    int64_t start_us;
    double late_ms;

    if (!connect_sink(&sink, argc, argv)) {
        fputs("bench_send RATE EVENTS KEYS kafka BROKERS TOPIC [LINGER_MS]\n"
              "bench_send RATE EVENTS KEYS outbox URL\n",
              stderr);
        return 2;
    }
    for (uint64_t i = 0; i < DIFFERENT; i++)
        sample_make(&samples[i], i, (uint64_t)atol(argv[3]), 600);
    start_us = clock_mono_us();
    late_ms = send_all(&sink, atof(argv[1]), events);
    if (sink.rk)
        topic_end(sink.rk);
    PQfinish(sink.conn);
    printf("{\"events\": %ld, \"seconds\": %.6f, \"late_ms\": %.3f}\n", events,
           (double)(clock_mono_us() - start_us) / 1e6, late_ms);
    return 0;
}
