#include "worker/http_allow.h"

#include "base/mem.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <curl/curl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct parts {
    char *scheme, *host, *port, *path, *user;
};

static void parts_fini(struct parts *p)
{
    curl_free(p->scheme);
    curl_free(p->host);
    curl_free(p->port);
    curl_free(p->path);
    curl_free(p->user);
}

static bool parse(const char *url, struct parts *p)
{
    CURLU *u = curl_url();
    bool ok;

    *p = (struct parts){0};
    ok = u && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
         curl_url_get(u, CURLUPART_SCHEME, &p->scheme, 0) == CURLUE_OK &&
         curl_url_get(u, CURLUPART_HOST, &p->host, 0) == CURLUE_OK &&
         curl_url_get(u, CURLUPART_PORT, &p->port, CURLU_DEFAULT_PORT) ==
             CURLUE_OK &&
         curl_url_get(u, CURLUPART_PATH, &p->path, 0) == CURLUE_OK;
    if (ok && curl_url_get(u, CURLUPART_USER, &p->user, 0) != CURLUE_OK)
        p->user = NULL;
    curl_url_cleanup(u);
    return ok;
}

/* /hooks covers /hooks and /hooks/x, not /hooksmith. */
static bool path_covers(const char *prefix, const char *path)
{
    size_t len = strlen(prefix);

    if (strncmp(prefix, path, len) != 0)
        return false;
    return len == 0 || prefix[len - 1] == '/' || path[len] == '/' ||
           path[len] == '\0';
}

static bool covers(const struct parts *prefix, const struct parts *url)
{
    return strcasecmp(prefix->scheme, url->scheme) == 0 &&
           strcasecmp(prefix->host, url->host) == 0 &&
           strcmp(prefix->port, url->port) == 0 &&
           path_covers(prefix->path, url->path);
}

static bool is_listed(const struct parts *url, const json_t *allow)
{
    bool found = false;
    const json_t *entry;
    size_t i;

    json_array_foreach(allow, i, entry) {
        const char *text = json_string_value(entry);
        struct parts prefix;

        if (found || !text || !strstr(text, "://"))
            continue;
        found = parse(text, &prefix) && covers(&prefix, url);
        parts_fini(&prefix);
    }
    return found;
}

static bool is_literal(const char *host)
{
    struct in_addr v4;

    return host[0] == '[' || inet_pton(AF_INET, host, &v4) == 1 ||
           strcasecmp(host, "localhost") == 0;
}

static bool is_slash(const char *at)
{
    return *at == '/' || strncasecmp(at, "%2f", 3) == 0;
}

/* The path's ".." are gone, but a server may undo %2f after we compared, and
 * some drop what follows a semicolon. */
static bool climbs(const char *path, const char *at)
{
    bool is_first = at == path || at[-1] == '/' ||
                    (at - path >= 3 && strncasecmp(at - 3, "%2f", 3) == 0);

    return is_first && at[0] == '.' && at[1] == '.' &&
           (!at[2] || at[2] == ';' || is_slash(at + 2));
}

/* Likewise %2e%2e and backslashes. */
static bool has_hidden_dots(const char *path)
{
    for (const char *at = path; *at; at++)
        if (climbs(path, at) || strncasecmp(at, "%2e", 3) == 0 ||
            strncasecmp(at, "%5c", 3) == 0)
            return true;
    return false;
}

static bool judge(const char *url, const struct parts *p, const json_t *allow,
                  struct err *err)
{
    if (strcasecmp(p->scheme, "http") != 0 &&
        strcasecmp(p->scheme, "https") != 0)
        return err_set(err, ERR_PERMANENT, "%s: only http and https", url);
    if (p->user)
        return err_set(err, ERR_PERMANENT,
                       "a url with a user in it: give a header instead");
    if (has_hidden_dots(p->path) || strchr(p->path, '\\'))
        return err_set(err, ERR_PERMANENT, "%s: hidden dots in the path", url);
    if (!is_listed(p, allow))
        return err_set(err, ERR_PERMANENT, "%s://%s:%s is not in allow.http",
                       p->scheme, p->host, p->port);
    return true;
}

bool http_url_allowed(const char *url, const json_t *allow, bool *named,
                      struct err *err)
{
    struct parts p;
    bool ok = parse(url, &p) ? judge(url, &p, allow, err)
                             : err_set(err, ERR_PERMANENT, "%s is no url", url);

    *named = ok && p.host && is_literal(p.host);
    parts_fini(&p);
    return ok;
}

char *url_origin(const char *url)
{
    struct parts p;
    char *origin = NULL;

    if (parse(url, &p))
        origin = xasprintf("%s://%s:%s", p.scheme, p.host, p.port);
    for (char *c = origin; c && *c; c++)
        *c = (char)tolower((unsigned char)*c);
    parts_fini(&p);
    return origin;
}

/* --- addresses ------------------------------------------------------------ */

/* Every address as 16 bytes; IPv4 as ::ffff:a.b.c.d. */
static bool to_bytes(int family, const void *from, unsigned char out[16])
{
    if (family == AF_INET6) {
        memcpy(out, from, 16);
        return true;
    }
    memset(out, 0, 10);
    memset(out + 10, 0xff, 2);
    memcpy(out + 12, from, 4);
    return family == AF_INET;
}

static bool parse_network(const char *text, unsigned char net[16], int *bits)
{
    char host[64];
    const char *slash = strchr(text, '/');
    unsigned char raw[16];

    if (!slash || (size_t)(slash - text) >= sizeof(host))
        return false;
    snprintf(host, sizeof(host), "%.*s", (int)(slash - text), text);
    *bits = (int)strtol(slash + 1, NULL, 10);
    if (inet_pton(AF_INET, host, raw) == 1) {
        *bits += 96;
        return to_bytes(AF_INET, raw, net);
    }
    return inet_pton(AF_INET6, host, raw) == 1 && to_bytes(AF_INET6, raw, net);
}

static bool in_network(const unsigned char addr[16], const char *text)
{
    unsigned char net[16];
    int bits;

    if (!parse_network(text, net, &bits) || bits < 0 || bits > 128)
        return false;
    if (memcmp(addr, net, (size_t)bits / 8) != 0)
        return false;
    return bits % 8 == 0 ||
           ((addr[bits / 8] ^ net[bits / 8]) >> (8 - bits % 8)) == 0;
}

/* Addresses that mean this machine, this site or the cloud's metadata. */
static bool is_inside(const unsigned char addr[16])
{
    static const char *const inside[] = {
        "0.0.0.0/8",      "10.0.0.0/8",    "100.64.0.0/10", "127.0.0.0/8",
        "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",  "192.168.0.0/16",
        "198.18.0.0/15",  "224.0.0.0/4",   "240.0.0.0/4",   "::/128",
        "::1/128",        "64:ff9b::/96",  "fc00::/7",      "fe80::/10",
        "ff00::/8",
    };

    for (size_t i = 0; i < sizeof(inside) / sizeof(*inside); i++)
        if (in_network(addr, inside[i]))
            return true;
    return false;
}

static bool bytes_allowed(const unsigned char bytes[16], const json_t *allow)
{
    const json_t *entry;
    size_t i;

    if (!is_inside(bytes))
        return true;
    json_array_foreach(allow, i, entry) {
        const char *text = json_string_value(entry);

        if (text && !strstr(text, "://") && in_network(bytes, text))
            return true;
    }
    return false;
}

bool http_address_allowed(const struct sockaddr *addr, const json_t *allow)
{
    const void *at =
        addr->sa_family == AF_INET6
            ? (const void *)&((const struct sockaddr_in6 *)(const void *)addr)
                  ->sin6_addr
            : (const void *)&((const struct sockaddr_in *)(const void *)addr)
                  ->sin_addr;
    unsigned char bytes[16];

    return to_bytes(addr->sa_family, at, bytes) && bytes_allowed(bytes, allow);
}

bool http_ip_allowed(const char *ip, const json_t *allow)
{
    unsigned char raw[16], bytes[16];
    int family = inet_pton(AF_INET, ip, raw) == 1    ? AF_INET
                 : inet_pton(AF_INET6, ip, raw) == 1 ? AF_INET6
                                                     : AF_UNSPEC;

    return family != AF_UNSPEC && to_bytes(family, raw, bytes) &&
           bytes_allowed(bytes, allow);
}
