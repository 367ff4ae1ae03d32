/*
 * Names to addresses on a short-lived thread, because PQconnectStart() would
 * look them up on the loop. libpq then gets hostaddr beside host: the name is
 * still what a certificate is checked against.
 */
#include "pg/pg_internal.h"

#include "base/buf.h"
#include "base/mem.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct resolver {
    struct ev_loop *loop;
    ev_async done;
    pthread_t thread;
    pthread_mutex_t lock; /* guards the next two */
    bool finished, abandoned;
    char *hosts, *ports;
    struct addresses found;
    bool failed;
    struct err err;
    resolved_fn *cb;
    void *arg;
};

static bool is_numeric(const char *host)
{
    unsigned char addr[sizeof(struct in6_addr)];

    return inet_pton(AF_INET, host, addr) == 1 ||
           inet_pton(AF_INET6, host, addr) == 1;
}

static bool needs_lookup(const char *host)
{
    return *host && *host != '/' && *host != '@' && !is_numeric(host);
}

static const char *value_in(const PQconninfoOption *opts, const char *name)
{
    for (const PQconninfoOption *o = opts; o && o->keyword; o++)
        if (strcmp(o->keyword, name) == 0 && o->val && *o->val)
            return o->val;
    return NULL;
}

/* A password with / or @ in it is read as a port or a host. */
bool pg_url_check(const char *url, struct err *err)
{
    PQconninfoOption *opts = PQconninfoParse(url, NULL);
    const char *port = value_in(opts, "port"), *host = value_in(opts, "host");
    bool ok = opts && (!port || !port[strspn(port, "0123456789,")]) &&
              (!host || !strchr(host + 1, '@'));

    PQconninfoFree(opts);
    if (ok)
        return true;
    return err_code(err, ERR_PERMANENT, "08001",
                    "database url: not of the form "
                    "postgresql://user:password@host:port/name (there, write / "
                    "as %%2F, @ as %%40, %% as %%25) nor key=value pairs");
}

/* A connection parameter: from the url, else libpq's defaults, which know the
 * environment. */
static char *param(const PQconninfoOption *url, const char *name)
{
    PQconninfoOption *dflt = PQconndefaults();
    const char *value = value_in(url, name);
    char *copy;

    if (!value)
        value = value_in(dflt, name);
    copy = xstrdup(value ? value : "");
    PQconninfoFree(dflt);
    return copy;
}

static bool any_needs_lookup(const char *hosts)
{
    char *copy = xstrdup(hosts), *save = NULL;
    bool needed = false;

    for (char *h = strtok_r(copy, ",", &save); h;
         h = strtok_r(NULL, ",", &save))
        needed = needed || needs_lookup(h);
    free(copy);
    return needed;
}

bool resolver_is_needed(const char *url)
{
    PQconninfoOption *opts = PQconninfoParse(url, NULL);
    char *hosts = param(opts, "host");
    char *addrs = param(opts, "hostaddr");
    bool needed = !*addrs && any_needs_lookup(hosts);

    PQconninfoFree(opts);
    free(hosts);
    free(addrs);
    return needed;
}

struct lists {
    struct buf host, addr, port;
    int len;
};

static void add(struct lists *out, const char *host, const char *addr,
                const char *port)
{
    const char *comma = out->len++ > 0 ? "," : "";

    buf_printf(&out->host, "%s%s", comma, host);
    buf_printf(&out->addr, "%s%s", comma, addr);
    buf_printf(&out->port, "%s%s", comma, port);
}

static bool look_up(struct resolver *r, const char *host, const char *port,
                    struct lists *out)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_ADDRCONFIG};
    struct addrinfo *list = NULL;
    int rc = getaddrinfo(host, NULL, &hints, &list);
    char text[INET6_ADDRSTRLEN];

    if (rc != 0)
        return err_code(&r->err, ERR_RETRIABLE, "08001",
                        "cannot resolve host %s: %s", host, gai_strerror(rc));
    for (struct addrinfo *ai = list; ai; ai = ai->ai_next)
        if (getnameinfo(ai->ai_addr, ai->ai_addrlen, text, sizeof(text), NULL,
                        0, NI_NUMERICHOST) == 0)
            add(out, host, text, port);
    freeaddrinfo(list);
    return true;
}

/* Every host with its port; one port for all is allowed, as in libpq. One
 * host that cannot be resolved does not matter while another can. */
static void resolve_all(struct resolver *r)
{
    struct lists out = {0};
    char *hosts = r->hosts, *ports = r->ports;
    char *port = strsep(&ports, ",");

    for (char *host; (host = strsep(&hosts, ","));) {
        if (!needs_lookup(host))
            add(&out, host, is_numeric(host) ? host : "", port);
        else if (!look_up(r, host, port, &out))
            r->failed = true;
        if (ports && hosts)
            port = strsep(&ports, ",");
    }
    r->failed = r->failed && out.len == 0;
    r->found = (struct addresses){buf_give(&out.host), buf_give(&out.addr),
                                  buf_give(&out.port)};
}

static void resolver_free(struct resolver *r)
{
    pthread_mutex_destroy(&r->lock);
    addresses_fini(&r->found);
    free(r->hosts);
    free(r->ports);
    free(r);
}

static void *resolve_thread(void *arg)
{
    struct resolver *r = arg;
    bool abandoned;

    resolve_all(r);
    pthread_mutex_lock(&r->lock);
    r->finished = true;
    abandoned = r->abandoned;
    if (!abandoned)
        ev_async_send(r->loop, &r->done);
    pthread_mutex_unlock(&r->lock);
    if (abandoned)
        resolver_free(r);
    return NULL;
}

static void on_done(struct ev_loop *loop, ev_async *w, int revents)
{
    struct resolver *r = w->data;

    (void)revents;
    ev_async_stop(loop, w);
    pthread_join(r->thread, NULL);
    r->cb(r->arg, &r->found, r->failed ? &r->err : NULL);
    resolver_free(r);
}

struct resolver *resolver_start(struct ev_loop *loop, const char *url,
                                resolved_fn *cb, void *arg)
{
    struct resolver *r = xcalloc(1, sizeof(*r));
    PQconninfoOption *opts = PQconninfoParse(url, NULL);

    r->loop = loop;
    r->cb = cb;
    r->arg = arg;
    r->hosts = param(opts, "host");
    r->ports = param(opts, "port");
    PQconninfoFree(opts);
    pthread_mutex_init(&r->lock, NULL);
    ev_async_init(&r->done, on_done);
    r->done.data = r;
    ev_async_start(loop, &r->done);
    if (pthread_create(&r->thread, NULL, resolve_thread, r) != 0) {
        ev_async_stop(loop, &r->done);
        resolver_free(r);
        return NULL;
    }
    return r;
}

void resolver_abandon(struct resolver *r)
{
    bool finished;

    if (!r)
        return;
    ev_async_stop(r->loop, &r->done);
    pthread_mutex_lock(&r->lock);
    finished = r->finished;
    r->abandoned = true;
    if (!finished)
        pthread_detach(r->thread);
    pthread_mutex_unlock(&r->lock);
    if (!finished)
        return;
    pthread_join(r->thread, NULL);
    resolver_free(r);
}

void addresses_fini(struct addresses *found)
{
    free(found->host);
    free(found->hostaddr);
    free(found->port);
    *found = (struct addresses){0};
}
