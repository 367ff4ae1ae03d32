/* Talking to the host's API, and showing what it says. */
#include "cli/cli.h"

#include "base/buf.h"
#include "base/mem.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define URL_DEFAULT "http://127.0.0.1:7600"
#define CELL_MAX    80

static size_t on_data(char *data, size_t size, size_t n, void *arg)
{
    buf_add(arg, data, size * n);
    return size * n;
}

static struct curl_slist *headers_for(const struct cli *c, bool has_body)
{
    const char *token = c->token ? c->token : getenv("MOONTIDE_TOKEN");
    struct curl_slist *list = NULL;
    char *line;

    if (has_body)
        list = curl_slist_append(list, "Content-Type: application/json");
    if (token) {
        line = xasprintf("Authorization: Bearer %s", token);
        list = curl_slist_append(list, line);
        free(line);
    }
    return list;
}

static int complain(long status, const struct buf *text)
{
    json_t *json = json_loadb(text->ptr ? text->ptr : "", text->len, 0, NULL);
    const char *detail = json_string_value(json_object_get(json, "detail"));

    fprintf(stderr, "moontide: %s\n",
            detail ? detail : "the host refused without a reason");
    json_decref(json);
    return status == 422 || status == 403 || status == 401 ? EXIT_REFUSED
                                                           : EXIT_FAILED;
}

static int finish(CURL *curl, CURLcode code, const char *url,
                  const struct buf *text, json_t **answer)
{
    long status = 0;

    if (code != CURLE_OK) {
        fprintf(stderr, "moontide: cannot reach the host at %s: %s\n", url,
                curl_easy_strerror(code));
        return EXIT_UNREACHED;
    }
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    *answer = NULL;
    if (status >= 300 && status != 503)
        return complain(status, text);
    *answer = json_loadb(text->ptr ? text->ptr : "", text->len, JSON_DECODE_ANY,
                         NULL);
    if (status == 503 && !json_object_get(*answer, "reasons")) {
        json_decref(*answer);
        *answer = NULL;
        return complain(status, text);
    }
    return EXIT_DONE;
}

int cli_ask(const struct cli *c, const char *method, const char *path,
            const json_t *body, json_t **answer)
{
    char *text = body ? json_dumps(body, JSON_COMPACT) : NULL;
    int code = cli_ask_text(c, method, path, text, answer);

    free(text);
    return code;
}

int cli_ask_text(const struct cli *c, const char *method, const char *path,
                 const char *text, json_t **answer)
{
    const char *base = c->url ? c->url : getenv("MOONTIDE_URL");
    char *url = xasprintf("%s%s", base ? base : URL_DEFAULT, path);
    struct curl_slist *headers = headers_for(c, text != NULL);
    struct buf got = {0};
    CURL *curl = curl_easy_init();
    int code;

    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, method);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &got);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
    curl_easy_setopt(curl, CURLOPT_NOPROXY, "*");
    if (text)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text);
    code = finish(curl, curl_easy_perform(curl), url, &got, answer);
    curl_easy_cleanup(curl);
    curl_slist_free_all(headers);
    buf_fini(&got);
    free(url);
    return code;
}

char *cli_escape(const char *text)
{
    struct buf out = {0};

    for (; *text; text++) {
        unsigned char ch = (unsigned char)*text;

        if ((ch >= '0' && ch <= '9') || (ch >= 'A' && ch <= 'Z') ||
            (ch >= 'a' && ch <= 'z') || strchr("-_.~:", ch))
            buf_add_char(&out, (char)ch);
        else
            buf_printf(&out, "%%%02X", ch);
    }
    return buf_give(&out);
}

void cli_print_json(const json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_ENCODE_ANY);
    putchar('\n');
}

/* --- tables ------------------------------------------------------------------- */

static const json_t *member(const json_t *row, const char *path)
{
    while (row && *path) {
        char name[64];
        size_t len = strcspn(path, ".");

        snprintf(name, sizeof(name), "%.*s", (int)len, path);
        row = json_object_get(row, name);
        path += len + (path[len] == '.');
    }
    return row;
}

static char *cell(const json_t *row, const char *column)
{
    const json_t *value = member(row, strchr(column, ':') + 1);
    char *text, *p;

    if (!value || json_is_null(value))
        return xstrdup("");
    text = json_is_string(value)
               ? xstrdup(json_string_value(value))
               : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    for (p = text; *p; p++) /* an event may hold a terminal's escape codes */
        if ((unsigned char)*p < 0x20 || *p == 0x7f)
            *p = ' ';
    if (strlen(text) > CELL_MAX)
        memcpy(text + CELL_MAX - 3, "...", 4);
    return text;
}

static void print_row(char **cells, const size_t *widths, size_t n)
{
    for (size_t i = 0; i < n; i++)
        printf(i + 1 < n ? "%-*s  " : "%.*s", (int)widths[i], cells[i]);
    putchar('\n');
}

void cli_print_table(const json_t *rows, const char *const *columns, size_t n)
{
    size_t n_rows = json_array_size(rows), widths[16] = {0};
    char **cells = xcalloc((n_rows + 1) * n, sizeof(char *));

    for (size_t i = 0; i < n; i++)
        cells[i] = xstrndup(columns[i], strcspn(columns[i], ":"));
    for (size_t r = 0; r < n_rows; r++)
        for (size_t i = 0; i < n; i++)
            cells[(r + 1) * n + i] = cell(json_array_get(rows, r), columns[i]);
    for (size_t k = 0; k < (n_rows + 1) * n; k++)
        if (strlen(cells[k]) > widths[k % n])
            widths[k % n] = strlen(cells[k]);
    for (size_t r = 0; r <= n_rows; r++)
        print_row(cells + r * n, widths, n);
    for (size_t k = 0; k < (n_rows + 1) * n; k++)
        free(cells[k]);
    free(cells);
}
