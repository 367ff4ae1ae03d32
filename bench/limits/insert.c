/*
 * What PostgreSQL alone takes: limit_insert URL EVENTS [unnest]
 *
 * Writes the audit rows of the samples on one connection, a thousand rows a
 * transaction: by COPY, or with an inbox row for each by INSERT of arrays, both
 * statements in one round trip. Prints one line of JSON.
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
static const char inbox_sql[] =
    "INSERT INTO event_inbox (handler, event_id)"
    " SELECT 'audit', id FROM unnest($1::text[]) AS id ON CONFLICT DO NOTHING";
static const char rows_sql[] =
    "INSERT INTO event_audit_log (event_id, event_type, aggregate_type,"
    " aggregate_id, event_version, occurred_at, place, payload, metadata)"
    " SELECT id, type, 'Order', key, 1, at, place, payload, metadata FROM "
    "unnest("
    "$1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::text[],"
    " $6::jsonb[], $7::jsonb[])"
    " AS r (id, type, key, at, place, payload, metadata)";
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

/* --- arrays ------------------------------------------------------------------ */

enum column { ID, TYPE, KEY, AT, PLACE, PAYLOAD, METADATA, N_COLUMNS };

#define ARRAY_SIZE (4 << 20) /* of a text of A_TRANSACTION elements */

static char arrays[N_COLUMNS][ARRAY_SIZE];
static char *ends[N_COLUMNS];

/* An array's element as text, in quotes. */
static void add_element(enum column c, const char *text, size_t len)
{
    char *at = ends[c];

    if ((size_t)(at - arrays[c]) + 2 * len + 8 > ARRAY_SIZE)
        exit(1);
    *at = at == arrays[c] ? '{' : ',';
    at++;
    *at++ = '"';
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '"' || text[i] == '\\')
            *at++ = '\\';
        *at++ = text[i];
    }
    *at++ = '"';
    ends[c] = at;
}

static void add_text(enum column c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void add_text(enum column c, const char *fmt, ...)
{
    char text[256];
    va_list args;

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    add_element(c, text, strlen(text));
}

static void add_row(long i)
{
    size_t len;
    const char *body;

    sample_make(&s, (uint64_t)i, 5000, 600);
    body = sample_payload(&s, &len);
    add_element(ID, s.id, strlen(s.id));
    add_element(TYPE, s.type, strlen(s.type));
    add_element(KEY, s.key, strlen(s.key));
    add_element(AT, s.occurred_at, strlen(s.occurred_at));
    add_text(PLACE, "orders/%ld:%ld", i % 8, i);
    add_element(PAYLOAD, body, len);
    add_text(METADATA, "{\"actorId\":\"u-%ld\",\"correlationId\":\"c-%ld\"}",
             i % 997, i);
}

static void prepare(PGconn *conn)
{
    PGresult *inbox = PQprepare(conn, "inbox", inbox_sql, 0, NULL);
    PGresult *rows = PQprepare(conn, "rows", rows_sql, 0, NULL);

    need(conn, PQresultStatus(inbox) == PGRES_COMMAND_OK);
    need(conn, PQresultStatus(rows) == PGRES_COMMAND_OK);
    PQclear(inbox);
    PQclear(rows);
    need(conn, PQenterPipelineMode(conn));
}

/* The answers of two statements and of the sync behind them. */
static void take_answers(PGconn *conn)
{
    for (int left = 2; left >= 0;) {
        PGresult *res = PQgetResult(conn);
        ExecStatusType status = PQresultStatus(res);

        if (!res)
            continue; /* the end of a statement's results */
        need(conn, status == (left ? PGRES_COMMAND_OK : PGRES_PIPELINE_SYNC));
        PQclear(res);
        left--;
    }
}

/* What stands before a sync is one transaction. */
static void insert_some(PGconn *conn, long from, long to)
{
    const char *params[N_COLUMNS];

    for (int c = 0; c < N_COLUMNS; c++)
        params[c] = ends[c] = arrays[c];
    for (long i = from; i < to; i++)
        add_row(i);
    for (int c = 0; c < N_COLUMNS; c++)
        memcpy(ends[c], "}", 2);
    need(conn, PQsendQueryPrepared(conn, "inbox", 1, params, NULL, NULL, 0) &&
                   PQsendQueryPrepared(conn, "rows", N_COLUMNS, params, NULL,
                                       NULL, 0) &&
                   PQpipelineSync(conn));
    take_answers(conn);
}

int main(int argc, char **argv)
{
    void (*write_some)(PGconn *, long, long) =
        argc > 3 ? insert_some : copy_some;
    struct usage start;
    PGconn *conn;
    long events;

    if (argc < 3)
        return 2;
    events = atol(argv[2]);
    conn = PQconnectdb(argv[1]);
    need(conn, PQstatus(conn) == CONNECTION_OK);
    if (argc > 3)
        prepare(conn);
    start = usage_start();
    for (long n = 0; n < events; n += A_TRANSACTION)
        write_some(conn, n,
                   n + A_TRANSACTION < events ? n + A_TRANSACTION : events);
    usage_print(&start, events, "rows", events);
    PQfinish(conn);
    return 0;
}
