#include "kafka/client_internal.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define LEAVE_MAX_US  3000000
#define LEAVE_LOOK_MS 50

static const char component[] = "kafka";

/* Offsets move only over settled events, an unknown offset stops a partition,
 * and a producer never reorders: these are promises, not tuning. */
static const char *const ours[] = {
    "bootstrap.servers",
    "metadata.broker.list",
    "group.id",
    "group.instance.id",
    "client.id",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "auto.offset.reset",
    "enable.idempotence",
    "acks",
    "request.required.acks",
    "enable.partition.eof",
    "log.queue",
    "opaque",
    "partition.assignment.strategy",
    "transactional.id",
    "transaction.timeout.ms",
};

bool kafka_property_is_ours(const char *name)
{
    for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
        if (strcmp(name, ours[i]) == 0)
            return true;
    return false;
}

bool kafka_err(struct err *err, rd_kafka_resp_err_t code, const char *what)
{
    const char *name = rd_kafka_err2name(code);

    return err_code(err, ERR_RETRIABLE, name, "%s: %s", what,
                    rd_kafka_err2str(code));
}

bool kafka_is_undecodable(rd_kafka_resp_err_t code)
{
    switch ((int)code) {
    case RD_KAFKA_RESP_ERR__BAD_MSG:
    case RD_KAFKA_RESP_ERR__BAD_COMPRESSION:
    case RD_KAFKA_RESP_ERR__UNDERFLOW:
    case RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED: /* a codec we do not have */
    case RD_KAFKA_RESP_ERR_INVALID_MSG:      /* the broker's CRC check */
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE: return true;
    default: return false;
    }
}

bool kafka_conf_put(rd_kafka_conf_t *conf, const char *name, const char *value,
                    struct err *err)
{
    char text[256];

    if (rd_kafka_conf_set(conf, name, value, text, sizeof(text)) ==
        RD_KAFKA_CONF_OK)
        return true;
    return err_set(err, ERR_PERMANENT, "rdkafka.%s: %s", name, text);
}

static void set_connected(struct kafka_client *client, bool connected)
{
    if (client->connected == connected)
        return;
    client->connected = connected;
    if (connected)
        log_info("broker connected", "role=%s", client->role);
    else
        log_warn("no broker connected", "role=%s", client->role);
    if (client->on_state)
        client->on_state(client->state_arg, connected);
}

void kafka_client_died(struct kafka_client *client)
{
    rd_kafka_resp_err_t code;
    char text[256];
    struct err err;

    if (client->is_dead)
        return;
    client->is_dead = true;
    code = rd_kafka_fatal_error(client->rk, text, sizeof(text));
    err_code(&err, ERR_PERMANENT, rd_kafka_err2name(code), "%s", text);
    if (client->on_fatal)
        client->on_fatal(client, &err);
}

static void on_error(UNUSED rd_kafka_t *rk, int code, const char *reason,
                     void *opaque)
{
    struct kafka_client *client = opaque;

    log_warn("client error", "role=%s code=%s reason=" LOG_Q, client->role,
             rd_kafka_err2name((rd_kafka_resp_err_t)code), reason);
    if (code == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
        set_connected(client, false);
    if (code == RD_KAFKA_RESP_ERR__FATAL)
        kafka_client_died(client);
}

/* Statistics are the only place where librdkafka says that a broker is up. */
static int on_stats(UNUSED rd_kafka_t *rk, char *json, UNUSED size_t len,
                    void *opaque)
{
    set_connected(opaque, strstr(json, "\"state\":\"UP\"") != NULL);
    return 0;
}

/* Reconnection attempts and the like: librdkafka's levels are syslog's. */
static void on_log(UNUSED const rd_kafka_t *rk, int level, const char *facility,
                   const char *text)
{
    if (level <= 3)
        log_warn("librdkafka", "facility=%s text=" LOG_Q, facility, text);
    else
        log_debug("librdkafka", "facility=%s text=" LOG_Q, facility, text);
}

static const char *const common[] = {
    "log.queue",
    "true",
    "statistics.interval.ms",
    "1000",
    "reconnect.backoff.max.ms",
    "2000",
    "topic.metadata.refresh.interval.ms",
    "10000",
    NULL,
};

static bool put_pairs(rd_kafka_conf_t *conf, const char *const *pairs,
                      struct err *err)
{
    for (const char *const *pair = pairs; pair && *pair; pair += 2)
        if (!kafka_conf_put(conf, pair[0], pair[1], err))
            return false;
    return true;
}

static bool put_value(rd_kafka_conf_t *conf, const char *name,
                      const json_t *value, struct err *err)
{
    char number[32];

    if (kafka_property_is_ours(name))
        return err_set(err, ERR_PERMANENT,
                       "rdkafka.%s is set by the host itself", name);
    if (json_is_string(value))
        return kafka_conf_put(conf, name, json_string_value(value), err);
    if (json_is_boolean(value))
        return kafka_conf_put(conf, name,
                              json_is_true(value) ? "true" : "false", err);
    if (!json_is_number(value))
        return err_set(err, ERR_PERMANENT,
                       "rdkafka.%s must be a string, a number or a boolean",
                       name);
    snprintf(number, sizeof(number), "%.17g", json_number_value(value));
    return kafka_conf_put(conf, name, number, err);
}

static bool put_own(rd_kafka_conf_t *conf, const json_t *own, struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)(uintptr_t)own, name, value)
        if (!put_value(conf, name, value, err))
            return false;
    return true;
}

static bool put_all(rd_kafka_conf_t *conf,
                    const struct kafka_settings *settings,
                    const char *const *defaults, struct err *err)
{
    if (!put_pairs(conf, common, err) || !put_pairs(conf, defaults, err) ||
        !kafka_conf_put(conf, "bootstrap.servers", settings->brokers, err))
        return false;
    if (settings->client_id && *settings->client_id &&
        !kafka_conf_put(conf, "client.id", settings->client_id, err))
        return false;
    return put_own(conf, settings->rdkafka, err);
}

rd_kafka_conf_t *kafka_conf_new(const struct kafka_settings *settings,
                                const char *const *defaults,
                                struct kafka_client *client, struct err *err)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();

    client->on_state = settings->on_state;
    client->state_arg = settings->arg;
    rd_kafka_conf_set_opaque(conf, client);
    rd_kafka_conf_set_error_cb(conf, on_error);
    rd_kafka_conf_set_stats_cb(conf, on_stats);
    rd_kafka_conf_set_log_cb(conf, on_log);
    if (put_all(conf, settings, defaults, err))
        return conf;
    rd_kafka_conf_destroy(conf);
    return NULL;
}

bool kafka_settings_check(const struct kafka_settings *settings,
                          struct err *err)
{
    struct kafka_client unused = {.role = "check"};
    rd_kafka_conf_t *conf = kafka_conf_new(settings, NULL, &unused, err);

    if (!conf)
        return false;
    rd_kafka_conf_destroy(conf);
    return true;
}

bool kafka_client_open(struct kafka_client *client, rd_kafka_type_t type,
                       rd_kafka_conf_t *conf, struct err *err)
{
    char text[256];

    client->role = type == RD_KAFKA_CONSUMER ? "consumer" : "producer";
    client->rk = rd_kafka_new(type, conf, text, sizeof(text));
    if (client->rk) {
        rd_kafka_set_log_queue(client->rk, NULL);
        return true;
    }
    rd_kafka_conf_destroy(conf);
    return err_set(err, ERR_PERMANENT, "kafka %s: %s", client->role, text);
}

bool kafka_client_leave(rd_kafka_t *rk)
{
    int64_t until_us = clock_mono_us() + LEAVE_MAX_US;
    rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
    rd_kafka_error_t *fault = rd_kafka_consumer_close_queue(rk, queue);
    bool is_refused = fault; /* after a fatal error: it is out already */
    rd_kafka_message_t *m;

    while (!fault && !rd_kafka_consumer_closed(rk) &&
           clock_mono_us() < until_us) {
        m = rd_kafka_consume_queue(queue, LEAVE_LOOK_MS);
        if (m)
            rd_kafka_message_destroy(m);
    }
    if (fault)
        rd_kafka_error_destroy(fault);
    rd_kafka_queue_destroy(queue);
    return is_refused || rd_kafka_consumer_closed(rk);
}

void kafka_client_end(rd_kafka_t *rk, bool has_left)
{
    if (has_left)
        rd_kafka_destroy(rk);
    else
        log_warn("left the group without its answer", "%s", "");
}

static void on_readable(UNUSED struct ev_loop *loop, ev_io *io,
                        UNUSED int events)
{
    struct kafka_wake *wake = io->data;
    uint64_t count;
    ssize_t n = read(io->fd, &count, sizeof(count));

    CHECK(n == sizeof(count) || n < 0);
    wake->on_ready(wake->arg);
}

void kafka_wake_init(struct kafka_wake *wake, struct ev_loop *loop,
                     rd_kafka_queue_t *queue, void (*on_ready)(void *arg),
                     void *arg)
{
    static const uint64_t one = 1;
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    CHECK(fd >= 0);
    *wake = (struct kafka_wake){
        .loop = loop, .queue = queue, .on_ready = on_ready, .arg = arg};
    ev_io_init(&wake->io, on_readable, fd, EV_READ);
    wake->io.data = wake;
    ev_io_start(loop, &wake->io);
    rd_kafka_queue_io_event_enable(queue, fd, &one, sizeof(one));
    /* It speaks on empty to not empty only: something may be there already. */
    ev_feed_event(loop, &wake->io, EV_READ);
}

void kafka_wake_fini(struct kafka_wake *wake)
{
    if (!wake->queue)
        return;
    rd_kafka_queue_io_event_enable(wake->queue, -1, NULL, 0);
    rd_kafka_queue_destroy(wake->queue);
    ev_io_stop(wake->loop, &wake->io);
    close(wake->io.fd);
    wake->queue = NULL;
}
