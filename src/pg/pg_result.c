#include "pg/pg_internal.h"

#include "base/mem.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct pg_result *result_new(PGresult *pg)
{
    struct pg_result *res = xmalloc(sizeof(*res));

    res->pg = pg;
    atomic_init(&res->refs, 1);
    return res;
}

/* To those who hold it a result is const; its count of holders is not. */
static struct pg_result *own(const struct pg_result *res)
{
    struct pg_result *mine;

    memcpy(&mine, &res, sizeof(void *));
    return mine;
}

const struct pg_result *pg_result_ref(const struct pg_result *res)
{
    atomic_fetch_add(&own(res)->refs, 1);
    return res;
}

void pg_result_unref(const struct pg_result *res)
{
    struct pg_result *mine = own(res);

    if (!mine || atomic_fetch_sub(&mine->refs, 1) > 1)
        return;
    PQclear(mine->pg);
    free(mine);
}

int pg_result_nrows(const struct pg_result *res)
{
    return PQntuples(res->pg);
}

int pg_result_ncols(const struct pg_result *res)
{
    return PQnfields(res->pg);
}

const char *pg_result_name(const struct pg_result *res, int col)
{
    return PQfname(res->pg, col);
}

uint32_t pg_result_type(const struct pg_result *res, int col)
{
    return PQftype(res->pg, col);
}

int pg_result_col(const struct pg_result *res, const char *name)
{
    for (int i = 0; i < PQnfields(res->pg); i++)
        if (strcmp(PQfname(res->pg, i), name) == 0)
            return i;
    return -1;
}

const char *pg_result_value(const struct pg_result *res, int row, int col)
{
    return PQgetvalue(res->pg, row, col);
}

size_t pg_result_len(const struct pg_result *res, int row, int col)
{
    return (size_t)PQgetlength(res->pg, row, col);
}

bool pg_result_is_null(const struct pg_result *res, int row, int col)
{
    return PQgetisnull(res->pg, row, col);
}

static int nibble(char c)
{
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

char *pg_result_bytes(const struct pg_result *res, int row, int col,
                      size_t *len)
{
    const char *hex = pg_result_value(res, row, col);
    size_t n = pg_result_len(res, row, col);
    char *out;

    *len = 0;
    if (pg_result_is_null(res, row, col) || n < 2)
        return NULL;
    n = (n - 2) / 2;
    out = xmalloc(n + 1);
    for (size_t i = 0; i < n; i++)
        out[i] = (char)(nibble(hex[2 + 2 * i]) << 4 | nibble(hex[3 + 2 * i]));
    out[n] = '\0';
    *len = n;
    return out;
}

const char *pg_result_tag(const struct pg_result *res)
{
    return PQcmdStatus(res->pg);
}

int64_t pg_result_affected(const struct pg_result *res)
{
    return strtoll(PQcmdTuples(res->pg), NULL, 10);
}

const char *pg_result_sqlstate(const struct pg_result *res)
{
    const char *state;

    if (!res)
        return "08006";
    state = PQresultErrorField(res->pg, PG_DIAG_SQLSTATE);
    return state ? state : "00000";
}

const char *pg_result_detail(const struct pg_result *res)
{
    const char *text = NULL;

    if (res)
        text = PQresultErrorField(res->pg, PG_DIAG_MESSAGE_DETAIL);
    return text ? text : "";
}

/*
 * Classes that pass by themselves. 25P02 (an earlier statement failed) is not
 * among them: whoever sees it has lost the error that matters.
 */
enum err_kind pg_sqlstate_kind(const char *sqlstate)
{
    static const char *const retriable[] = {
        "08",    /* connection */
        "40",    /* serialization failure, deadlock */
        "53",    /* out of memory, disk, connections */
        "57",    /* cancelled, shut down, terminated */
        "58",    /* i/o error of the server */
        "55P03", /* lock_timeout */
        "55006", /* object in use */
        "25P03", /* idle in transaction for too long */
        "26000", /* a pooler gave us another server session */
        "MT001", /* expected_version: somebody else was first */
    };

    for (size_t i = 0; i < sizeof(retriable) / sizeof(*retriable); i++)
        if (strncmp(sqlstate, retriable[i], strlen(retriable[i])) == 0)
            return ERR_RETRIABLE;
    return ERR_PERMANENT;
}

/* One line: libpq ends messages with a newline and folds hints into them. */
static void flatten(char *text)
{
    char *out = text;

    for (const char *in = text; *in; in++) {
        char c = *in;

        if (c == '\n' || c == '\t')
            c = ' ';
        if (c != ' ' || (out > text && out[-1] != ' '))
            *out++ = c;
    }
    while (out > text && out[-1] == ' ')
        out--;
    *out = '\0';
}

void result_error(const PGresult *res, const PGconn *pq, struct err *err)
{
    const char *state = res ? PQresultErrorField(res, PG_DIAG_SQLSTATE) : NULL;
    const char *text =
        res ? PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY) : NULL;

    if (!state) { /* libpq's own words: the server did not speak */
        text = pq ? PQerrorMessage(pq) : "connection lost";
        if (!*text)
            text = "connection lost";
        state = "08006";
    }
    err_code(err, pg_sqlstate_kind(state), state, "%s", text ? text : state);
    flatten(err->msg);
}

bool pg_quote_ident(const char *name, char *out, size_t size)
{
    size_t len = 0;

    if (size < 3)
        return false;
    out[len++] = '"';
    for (; *name; name++) {
        if (len + 4 > size)
            return false;
        if (*name == '"')
            out[len++] = '"';
        out[len++] = *name;
    }
    out[len++] = '"';
    out[len] = '\0';
    return true;
}
