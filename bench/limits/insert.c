/*
 * What PostgreSQL alone takes: limit_insert URL EVENTS
 *
 * Writes the audit rows of the samples on one connection, by COPY, a thousand
 * rows a transaction. Prints one line of JSON.
 */
#include "sample.h"
#include "usage.h"

#include <libpq-fe.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define A_TRANSACTION 1000 /* rows */

static const char copy_sql[] =
    "COPY event_audit_log (event_id, event_type, aggregate_type, aggregate_id,"
    " event_version, occurred_at, place, payload, metadata) FROM STDIN";
static struct sample s;

static void need(PGconn *conn, bool ok)
{
    if (ok)
        return;
    fprintf(stderr, "%s\n", PQerrorMessage(conn));
    exit(1);
}

static void add(char **at, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void add(char **at, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    *at += vsprintf(*at, fmt, args);
    va_end(args);
}

/* Our samples hold nothing that COPY's text format would escape. */
static void copy_some(PGconn *conn, long from, long to)
{
    static char row[8192];

    PQclear(PQexec(conn, copy_sql));
    for (long i = from; i < to; i++) {
        const char *body;
        char *at = row;
        size_t len;

        sample_make(&s, (uint64_t)i, 5000, 600);
        body = sample_payload(&s, &len);
        add(&at,
            "%s\t%s\tOrder\t%s\t1\t%s\torders/%ld:%ld\t%.*s\t"
            "{\"actorId\":\"u-%ld\",\"correlationId\":\"c-%ld\"}\n",
            s.id, s.type, s.key, s.occurred_at, i % 8, i, (int)len, body,
            i % 997, i);
        need(conn, PQputCopyData(conn, row, (int)(at - row)) == 1);
    }
    need(conn, PQputCopyEnd(conn, NULL) == 1);
    for (PGresult *res; (res = PQgetResult(conn)) != NULL; PQclear(res))
        need(conn, PQresultStatus(res) == PGRES_COMMAND_OK);
}

int main(int argc, char **argv)
{
    struct usage start;
    PGconn *conn;
    long events;

    if (argc < 3)
        return 2;
    events = atol(argv[2]);
    conn = PQconnectdb(argv[1]);
    need(conn, PQstatus(conn) == CONNECTION_OK);
    start = usage_start();
    for (long n = 0; n < events; n += A_TRANSACTION)
        copy_some(conn, n,
                  n + A_TRANSACTION < events ? n + A_TRANSACTION : events);
    usage_print(&start, events, "rows", events);
    PQfinish(conn);
    return 0;
}
