"""From the commit or the delivery report's send to the handler, one event at a time.

The producer writes the time into the event (µs, the same clock), the handler logs
how long ago that was. At 200 events a second; the outbox in its three ways to wake.
"""

import json
import random
import re
import subprocess
import time

from common import BUILD, Bench, Host, wait_for
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

RATE = 200
HANDLER = """local log, time = require "moontide.log", require "moontide.time"
return { subscribes = { "*" }, start = "earliest",
  handle = function(event, ctx)
    log.info("took", { us = time.unix() * 1e6 - event.payload.sent_us })
  end }
"""


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p))]


def paced(count, send):
    """Evenly, with a little chance, so that no timer falls into step with it."""
    rng = random.Random(7)
    at = time.monotonic()
    for n in range(count):
        at += rng.uniform(0.5, 1.5) / RATE
        time.sleep(max(0, at - time.monotonic()))
        send(n)


def latencies(host, count):
    """ms, of all but the first second's."""
    def logged():
        found = re.findall(r"took .* us=([0-9.e+]+)$", host.log.read_text(), re.M)
        return found if len(found) >= count else None
    return [float(us) / 1000 for us in wait_for(logged, 30, f"{count} events")[RATE:]]


def row(bench, name, values, p50, p99):
    bench.raw[name] = values
    bench.row(f"{name}: p50", [percentile(values, 0.5)], "ms", p50)
    bench.row("  p99", [percentile(values, 0.99)], "ms", p99)
    bench.row("  p99.9", [percentile(values, 0.999)], "ms")


def kafka(bench, count):
    broker = bench.kafka()
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for made in admin.create_topics([NewTopic("latency", 8, 1)]).values():
        made.result()
    host = Host(bench.folder / "kafka-host", {"took": HANDLER}, brokers=broker.bootstrap,
                topics=["latency"])
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})

    def send(n):
        producer.produce("latency", key=f"k{n % 50}", value=json.dumps(
            {"id": f"e{n}", "eventType": "T", "aggregateType": "A", "aggregateId": f"k{n % 50}",
             "payload": {"sent_us": time.time() * 1e6}}))
        producer.poll(0)

    host.start()
    try:
        send(-1)
        wait_for(lambda: host.metric("moontide_settled_total", 'how="ack"') >= 1, 30, "a first one")
        paced(count, send)
        row(bench, "Kafka, produce → handler", latencies(host, count), "≤ 0.5", "≤ 3")
    finally:
        host.end(timeout=40)
    bare = subprocess.Popen([str(BUILD / "bench/limit_latency"), broker.bootstrap, "latency",
                             str(count)], stdout=subprocess.PIPE, text=True)
    bare.stdout.readline()
    paced(count, send)
    producer.flush()
    row(bench, "  bare librdkafka consumer", [float(us) / 1000 for us in bare.stdout][RATE:], "", "")
    bare.wait()


def outbox(bench, server, how, count):
    name = f"latency_{how}"
    server.query(f"create database {name}")
    host = Host(bench.folder / f"{how}-host", {"took": HANDLER}, database=server.url(name),
                outbox=f'wake = "{how}"')
    host.cli("migrate", "up", "--ids", "text")
    server.query("select moontide_outbox_wake(%s)", (how,), database=name)
    connection = server.connect(name)
    cursor = connection.cursor()
    cursor.execute("prepare put as insert into domain_events (aggregate_id, aggregate_type,"
                   " event_type, event_version, event_data, occurred_at)"
                   " values ($1, 'A', 'T', 1, $2, now())")

    def send(n):
        cursor.execute("execute put (%s, %s)",
                       (f"k{n % 50}", json.dumps({"sent_us": time.time() * 1e6})))

    host.start()
    try:
        send(-1)
        wait_for(lambda: host.metric("moontide_settled_total", 'how="ack"') >= 1, 30, "a first one")
        paced(count, send)
        fast = how != "poll"
        row(bench, f"outbox, commit → handler, {how}", latencies(host, count),
            "≤ 0.4" if fast else "≤ 2.5", "")
    finally:
        host.end(timeout=40)
        connection.close()


def main():
    with Bench("latency", __doc__) as bench:
        count = bench.count(4000)
        kafka(bench, count)
        # The log is read as far as it is flushed: at once with each commit.
        server = bench.postgres(wal_level="logical", synchronous_commit="on")
        for how in ("poll", "notify", "wal"):
            outbox(bench, server, how, count)


main()
