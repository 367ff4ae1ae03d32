/*
 * What libpq alone can do: limit_select URL EVENTS BATCH
 *
 * Reads the columns that the outbox reader reads, by keyset, on one
 * connection. Prints one line of JSON.
 */
#include "usage.h"

#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char sql[] =
    "SELECT seq, id::text, event_type, event_version::text, aggregate_type,"
    " aggregate_id::text, aggregate_version::text, occurred_at::text,"
    " metadata::text, event_data::text"
    " FROM domain_events WHERE seq > $1::bigint ORDER BY seq LIMIT $2::int";

int main(int argc, char **argv)
{
    char after[32] = "0";
    const char *params[2] = {after, argc > 3 ? argv[3] : "1000"};
    long n = 0, bytes = 0, events;
    struct usage start;
    PGconn *conn;

    if (argc < 4)
        return 2;
    events = atol(argv[2]);
    conn = PQconnectdb(argv[1]);
    PQclear(PQprepare(conn, "read", sql, 2, NULL));
    start = usage_start();
    while (n < events) {
        PGresult *res = PQexecPrepared(conn, "read", 2, params, NULL, NULL, 0);
        int rows = PQntuples(res);

        if (PQresultStatus(res) != PGRES_TUPLES_OK || rows == 0) {
            fprintf(stderr, "%s\n", PQerrorMessage(conn));
            return 1;
        }
        for (int i = 0; i < rows; i++)
            bytes += PQgetlength(res, i, 9);
        snprintf(after, sizeof(after), "%s", PQgetvalue(res, rows - 1, 0));
        n += rows;
        PQclear(res);
    }
    usage_print(&start, n, "bytes", bytes);
    PQfinish(conn);
    return 0;
}
