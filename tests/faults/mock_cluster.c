/*
 * librdkafka's mock cluster as a process of its own, so that a host meets it
 * over TCP and a test can inject what a real broker does once a year.
 *
 * Prints its bootstrap servers, then obeys lines on stdin, each answered with
 * "ok" or "bad":
 *   topic NAME PARTITIONS        fail APIKEY CODE...   (0: that request passes)
 *   leader TOPIC PARTITION BROKER          clear APIKEY
 *   down BROKER    up BROKER               rtt BROKER MS
 */
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define BROKERS   3
#define CODES_MAX 512

static rd_kafka_mock_cluster_t *cluster;

/* librdkafka 2.8's mock cluster names no controller, without which its own
 * DescribeTopics waits for ever. The field is private: this is the head of
 * struct rd_kafka_mock_cluster_s, and what is known of it is compared first. */
struct head {
    char id[32];
    rd_kafka_t *rk;
    int32_t controller;
};

static int name_controller(void)
{
    struct head *head = (struct head *)cluster;

    if (strncmp(head->id, "mockCluster", 11) != 0 ||
        head->rk != rd_kafka_mock_cluster_handle(cluster) ||
        head->controller != 0)
        return 0;
    head->controller = 1;
    return 1;
}

/* The rest of the line: codes, one for each request to come. */
static int push_codes(const char *rest, int api)
{
    rd_kafka_resp_err_t codes[CODES_MAX];
    size_t n = 0;
    int used, code;

    while (n < CODES_MAX && sscanf(rest, "%d%n", &code, &used) == 1) {
        codes[n++] = (rd_kafka_resp_err_t)code;
        rest += used;
    }
    rd_kafka_mock_push_request_errors_array(cluster, (int16_t)api, n, codes);
    return n > 0;
}

static int obey(const char *line)
{
    char topic[256];
    int a, b, at = 0;

    if (sscanf(line, "topic %255s %d", topic, &a) == 2)
        return !rd_kafka_mock_topic_create(cluster, topic, a, BROKERS);
    if (sscanf(line, "leader %255s %d %d", topic, &a, &b) == 3)
        return !rd_kafka_mock_partition_set_leader(cluster, topic, a, b);
    if (sscanf(line, "fail %d %n", &a, &at) == 1 && at > 0)
        return push_codes(line + at, a);
    if (sscanf(line, "clear %d", &a) == 1) {
        rd_kafka_mock_clear_request_errors(cluster, (int16_t)a);
        return 1;
    }
    if (sscanf(line, "rtt %d %d", &a, &b) == 2)
        return !rd_kafka_mock_broker_set_rtt(cluster, a, b);
    if (sscanf(line, "down %d", &a) == 1)
        return !rd_kafka_mock_broker_set_down(cluster, a);
    if (sscanf(line, "up %d", &a) == 1)
        return !rd_kafka_mock_broker_set_up(cluster, a);
    return 0;
}

int main(void)
{
    char line[8192], text[256] = "";
    rd_kafka_t *rk;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    rk = rd_kafka_new(RD_KAFKA_PRODUCER, rd_kafka_conf_new(), text,
                      sizeof(text));
    cluster = rk ? rd_kafka_mock_cluster_new(rk, BROKERS) : NULL;
    if (!cluster) {
        fprintf(stderr, "mock cluster: %s\n", text);
        return 1;
    }
    if (!name_controller())
        fprintf(stderr, "mock cluster: not laid out as librdkafka 2.8's\n");
    rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0);
    printf("%s\n", rd_kafka_mock_cluster_bootstraps(cluster));
    fflush(stdout);
    while (fgets(line, sizeof(line), stdin)) {
        puts(obey(line) ? "ok" : "bad");
        fflush(stdout);
    }
    rd_kafka_mock_cluster_destroy(cluster);
    rd_kafka_destroy(rk);
    return 0;
}
