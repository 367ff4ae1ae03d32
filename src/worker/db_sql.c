#include "worker/db_sql.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>

/* Behind blanks, empty statements and comments, which nest. */
static const char *skip_blanks(const char *at)
{
    int depth = 0;

    for (; *at; at++) {
        if (strncmp(at, "/*", 2) == 0) {
            depth++;
            at++;
        } else if (depth && strncmp(at, "*/", 2) == 0) {
            depth--;
            at++;
        } else if (!depth && strncmp(at, "--", 2) == 0) {
            at += strcspn(at, "\n");
            if (!*at)
                break;
        } else if (!depth && !isspace((unsigned char)*at) && *at != ';') {
            break;
        }
    }
    return at;
}

static bool take_word(const char **at, const char *word)
{
    size_t len = strlen(word);
    const char *from = skip_blanks(*at);

    if (strncasecmp(from, word, len) != 0 ||
        isalnum((unsigned char)from[len]) || from[len] == '_')
        return false;
    *at = from + len;
    return true;
}

bool sql_ends_transaction(const char *sql)
{
    if (take_word(&sql, "prepare"))
        return take_word(&sql, "transaction");
    if (take_word(&sql, "rollback")) {
        if (!take_word(&sql, "work"))
            take_word(&sql, "transaction");
        return !take_word(&sql, "to");
    }
    return take_word(&sql, "commit") || take_word(&sql, "end") ||
           take_word(&sql, "abort");
}

bool sql_changes_session(const char *sql)
{
    static const char *const words[] = {"reset", "discard", "listen",
                                        "unlisten", "deallocate"};

    if (take_word(&sql, "set"))
        return !take_word(&sql, "local") && !take_word(&sql, "transaction") &&
               !take_word(&sql, "constraints");
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++)
        if (take_word(&sql, words[i]))
            return true;
    return false;
}

static bool has_word(const char *sql, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = sql; (at = strcasestr(at, word)); at += len)
        if ((at == sql || !isalnum((unsigned char)at[-1])) &&
            !isalnum((unsigned char)at[len]))
            return true;
    return false;
}

bool sql_may_soil(const char *sql)
{
    static const char *const plain[] = {
        "select", "insert", "update", "delete",    "with",    "values",
        "merge",  "table",  "set",    "savepoint", "release", "rollback"};

    for (size_t i = 0; i < sizeof(plain) / sizeof(*plain); i++)
        if (take_word(&sql, plain[i]))
            return strcasestr(sql, "set_config") ||
                   strcasestr(sql, "advisory_lock") || has_word(sql, "temp") ||
                   has_word(sql, "temporary");
    return true;
}
