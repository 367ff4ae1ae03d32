"""From the produce, or the commit's return, to the handler, one event at a time.

The producer keeps when it sent what (µs), the handler logs when it had it, by the
same clock. At 200 events a second; the outbox in its three ways to wake. Then at half
the load that the machine bears, from the sending (load.py): there a producer's linger
of 5 ms, or the statement and its commit, are part of it.
"""

import json
import random
import re
import subprocess
import time

import load
from common import BUILD, Bench, Host, percentile, wait_for
from confluent_kafka import Producer

RATE = 200
HANDLER = """local log, time = require "moontide.log", require "moontide.time"
return { subscribes = { "*" }, start = "earliest",
  handle = function(event, ctx)
    log.info("took", { n = event.payload.n, at = ("%.0f"):format(time.unix() * 1e6) })
  end }
"""


def paced(count, send):
    """Evenly, with a little chance, so that no timer falls into step with it."""
    rng = random.Random(7)
    at = time.monotonic()
    for n in range(count):
        at += rng.uniform(0.5, 1.5) / RATE
        time.sleep(max(0, at - time.monotonic()))
        send(n)


def latencies(host, sent):
    """ms, of all but the first second's."""
    def logged():
        found = re.findall(r'took .* at="?(\d+)"? n=(\d+)$|took .* n=(\d+) at="?(\d+)"?$',
                           host.log.read_text(), re.M)
        return found if len(found) >= len(sent) else None
    took = {int(n1 or n2): int(at1 or at2)
            for at1, n1, n2, at2 in wait_for(logged, 30, f"{len(sent)} events")}
    return [max(0, took[n] - at) / 1000 for n, at in enumerate(sent)][RATE:]


def us():
    return time.time_ns() // 1000


def row(bench, name, values, p50, p99):
    bench.raw[name] = values
    bench.row(f"{name}: p50", [percentile(values, 0.5)], "ms", p50)
    bench.row("  p99", [percentile(values, 0.99)], "ms", p99)
    bench.row("  p99.9", [percentile(values, 0.999)], "ms")


def kafka(bench, broker, count):
    load.make_topic(broker, "latency")
    host = Host(bench.folder / "kafka-host", {"took": HANDLER}, brokers=broker.bootstrap,
                topics=["latency"])
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 0})

    sent = []

    def send(n):
        sent.append(us())
        producer.produce("latency", key=f"k{n % 50}", value=json.dumps(
            {"id": f"e{n}", "eventType": "T", "aggregateType": "A", "aggregateId": f"k{n % 50}",
             "payload": {"n": n, "sent_us": sent[-1]}}))
        producer.poll(0)

    bare = subprocess.Popen([str(BUILD / "bench/limit_latency"), broker.bootstrap, "latency",
                             str(count)], stdout=subprocess.PIPE, text=True)
    bare.stdout.readline()
    paced(count, send)
    producer.flush()
    limit = [float(took) / 1000 for took in bare.stdout][RATE:]
    bare.wait()
    host.start()  # the broker is warm now; what is there is not counted
    try:
        wait_for(lambda: host.metric("moontide_settled_total", 'how="ack"') >= count, 30, "a start")
        sent.clear()
        paced(count, lambda n: send(n + count))
        times = latencies(host, [0] * count + sent)
        row(bench, "Kafka, produce → handler", times[count:], "≤ 0.5", "≤ 3")
    finally:
        host.end(timeout=40)
    row(bench, "  bare consumer, produce → consume", limit, "", "")


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

    sent = []

    def send(n):
        cursor.execute("execute put (%s, %s)", (f"k{n % 50}", json.dumps({"n": n})))
        sent.append(us())

    host.start()
    try:
        paced(count, send)
        fast = how != "poll"
        row(bench, f"outbox, commit → handler, {how}", latencies(host, sent),
            "≤ 0.3" if fast else "≤ 2.5", "")
    finally:
        host.end(timeout=40)
        connection.close()


def kafka_at_half(bench, broker):
    load.make_topic(broker, "load")
    host = Host(bench.folder / "kafka-load", {"took": load.HANDLER}, brokers=broker.bootstrap,
                topics=["load"])
    rate = load.at_half(bench, "Kafka", host, ("kafka", broker.bootstrap, "load"), 2_000_000)
    bare_at_half(bench, broker, rate)


def bare_at_half(bench, broker, rate):
    """A consumer that does nothing else, at the same load, by the records' own times."""
    load.make_topic(broker, "bare")
    count, first = int(rate * (load.WARM_UP + 20)), int(rate * load.WARM_UP)
    bare = subprocess.Popen([str(BUILD / "bench/limit_latency"), broker.bootstrap, "bare",
                             str(count)], stdout=subprocess.PIPE, text=True)
    bare.stdout.readline()
    with load.sending(rate, count, 1000, "kafka", broker.bootstrap, "bare") as sender:
        took = [float(line) / 1000 for line in bare.stdout][first:]
        late = json.load(sender.stdout)["late_ms"]
    bare.wait()
    bench.row("  bare consumer, half the load: p50", [percentile(took, 0.5)], "ms")
    bench.row("  p99", [percentile(took, 0.99)], "ms")
    bench.row("  the sender behind its plan, at most", [late], "ms")


def outbox_at_half(bench, server):
    server.query("create database load")
    url = server.url("load")
    host = Host(bench.folder / "outbox-load", {"took": load.HANDLER}, database=url)
    host.cli("migrate", "up", "--ids", "text")
    load.at_half(bench, "outbox", host, ("outbox", url), 500_000)


def main():
    with Bench("latency", __doc__) as bench:
        count = bench.count(4000)
        broker = bench.kafka()
        kafka(bench, broker, count)
        kafka_at_half(bench, broker)
        # The log is read as far as it is flushed: at once with each commit.
        server = bench.postgres(wal_level="logical", synchronous_commit="on",
                                shared_buffers="1GB", max_wal_size="8GB")
        for how in ("poll", "notify", "wal"):
            outbox(bench, server, how, count)
        outbox_at_half(bench, server)


main()
