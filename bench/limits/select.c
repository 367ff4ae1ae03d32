/*
 * What libpq alone can do: limit_select URL EVENTS BATCH
 *
 * Reads the columns that the outbox reader reads, by keyset, on one
 * connection. Prints one line of JSON.
 */
#include <libpq-fe.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

static double seconds(clockid_t id)
{
    struct timespec t;

    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

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
    struct rusage usage;
    double start, cpu;
    PGconn *conn;

    if (argc < 4)
        return 2;
    events = atol(argv[2]);
    conn = PQconnectdb(argv[1]);
    PQclear(PQprepare(conn, "read", sql, 2, NULL));
    start = seconds(CLOCK_MONOTONIC);
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
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
    start = seconds(CLOCK_MONOTONIC) - start;
    cpu = seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"events\": %ld, \"seconds\": %.6f, \"cpu_us\": %.4f, "
           "\"peak_kib\": %ld, \"bytes\": %ld}\n",
           n, start, cpu * 1e6 / (double)n, usage.ru_maxrss, bytes);
    PQfinish(conn);
    return 0;
}
