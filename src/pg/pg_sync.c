#include "pg/pg_sync.h"

#include "base/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "pg/pg_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char component[] = "pg";

enum { MAX_PARAMS = 32 };

struct pg_sync {
    PGconn *pq;
    char sqlstate[6];
};

static void on_notice(void *arg, const PGresult *res)
{
    const char *severity =
        PQresultErrorField(res, PG_DIAG_SEVERITY_NONLOCALIZED);
    const char *text = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    (void)arg;
    if (severity && text && strcmp(severity, "WARNING") == 0)
        log_warn("database says", "text=" LOG_Q, text);
}

struct pg_sync *pg_sync_connect(const char *url, struct err *err)
{
    const char *const keys[] = {"application_name", "connect_timeout",
                                "client_encoding", "dbname", NULL};
    const char *const values[] = {"moontide", "10", "UTF8", url, NULL};
    struct pg_sync *db;

    if (!pg_url_check(url, err))
        return NULL;
    db = xcalloc(1, sizeof(*db));
    db->pq = PQconnectdbParams(keys, values, 1);
    if (PQstatus(db->pq) != CONNECTION_OK) {
        result_error(NULL, db->pq, err);
        pg_sync_close(db);
        return NULL;
    }
    PQsetNoticeReceiver(db->pq, on_notice, NULL);
    return db;
}

void pg_sync_close(struct pg_sync *db)
{
    if (!db)
        return;
    PQfinish(db->pq);
    free(db);
}

const char *pg_sync_sqlstate(const struct pg_sync *db)
{
    return db->sqlstate;
}

static const struct pg_result *take(struct pg_sync *db, PGresult *res,
                                    struct err *err)
{
    ExecStatusType status = PQresultStatus(res);

    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
        status == PGRES_EMPTY_QUERY)
        return result_new(res);
    result_error(res, db->pq, err);
    snprintf(db->sqlstate, sizeof(db->sqlstate), "%.5s", err->code);
    PQclear(res);
    return NULL;
}

const struct pg_result *pg_sync_exec(struct pg_sync *db, const char *sql, int n,
                                     const struct pg_param *params,
                                     struct err *err)
{
    const char *values[MAX_PARAMS];
    int lens[MAX_PARAMS], formats[MAX_PARAMS];
    Oid types[MAX_PARAMS];

    CHECK(n <= MAX_PARAMS);
    for (int i = 0; i < n; i++) {
        values[i] = params[i].value;
        lens[i] = params[i].len;
        formats[i] = params[i].binary;
        types[i] = params[i].type;
    }
    return take(
        db, PQexecParams(db->pq, sql, n, types, values, lens, formats, 0), err);
}

bool pg_sync_script(struct pg_sync *db, const char *sql, struct err *err)
{
    const struct pg_result *res = take(db, PQexec(db->pq, sql), err);

    pg_result_unref(res);
    return res != NULL;
}
