#include "kafka/embedded.h"

#include "base/log.h"
#include "base/mem.h"
#include "kafka/client_internal.h"

#include <librdkafka/rdkafka_mock.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

static const char component[] = "kafka";

struct kafka_embedded {
    rd_kafka_t *rk; /* owns the threads of the cluster, talks to nobody */
    rd_kafka_mock_cluster_t *cluster;
};

static void on_log(UNUSED const rd_kafka_t *rk, UNUSED int level,
                   const char *facility, const char *text)
{
    log_debug("embedded broker", "facility=%s text=" LOG_Q, facility, text);
}

/* The cluster's thread takes an interrupted poll(2) for the end and destroys
 * the cluster (librdkafka 2.8.0, rdkafka_mock.c): no signal may reach it, least
 * of all the SIGCHLD of a worker. A thread inherits the mask of its maker. */
static rd_kafka_mock_cluster_t *new_cluster(rd_kafka_t *rk)
{
    rd_kafka_mock_cluster_t *cluster;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    cluster = rd_kafka_mock_cluster_new(rk, 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return cluster;
}

struct kafka_embedded *kafka_embedded_new(struct err *err)
{
    struct kafka_embedded *e = xcalloc(1, sizeof(*e));
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    char text[256] = "";

    rd_kafka_conf_set_log_cb(conf, on_log);
    e->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
    if (e->rk)
        e->cluster = new_cluster(e->rk);
    else
        rd_kafka_conf_destroy(conf);
    if (e->cluster) {
        rd_kafka_mock_group_initial_rebalance_delay_ms(e->cluster, 0);
        log_warn("embedded broker keeps little and forgets all: not for "
                 "production",
                 "bootstrap=%s", kafka_embedded_bootstrap(e));
        return e;
    }
    err_set(err, ERR_PERMANENT, "embedded broker: %s",
            *text ? text : "cannot listen on 127.0.0.1");
    kafka_embedded_free(e);
    return NULL;
}

void kafka_embedded_free(struct kafka_embedded *e)
{
    if (!e)
        return;
    if (e->cluster)
        rd_kafka_mock_cluster_destroy(e->cluster);
    if (e->rk)
        rd_kafka_destroy(e->rk);
    free(e);
}

const char *kafka_embedded_bootstrap(const struct kafka_embedded *e)
{
    return rd_kafka_mock_cluster_bootstraps(e->cluster);
}

bool kafka_embedded_topic(struct kafka_embedded *e, const char *topic,
                          int partitions, struct err *err)
{
    rd_kafka_resp_err_t code =
        rd_kafka_mock_topic_create(e->cluster, topic, partitions, 1);

    if (code == RD_KAFKA_RESP_ERR_NO_ERROR ||
        code == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
        return true;
    return kafka_err(err, code, topic);
}
