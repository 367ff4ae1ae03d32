"""transaction = "kafka": Kafka → handler → Kafka, each output exactly once for readers of
committed records, and in order per key."""

import json
import signal
from collections import defaultdict

from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from harness import SLOWER, Topics, envelope
from scenes import QUICK_GROUP, kill_a_worker, make_rng, sized
from servers import Kafka

TRANSFORMS = """
local json = require "moontide.json"
local kafka = require "moontide.kafka"
local log = require "moontide.log"
return { subscribes = { "*" }, start = "earliest", transaction = "kafka", concurrency = 32,
  retry = { max_attempts = 5, base = "5ms", cap = "20ms" },
  allow = { kafka = { "%(out)s" } },
  handle = function(event, ctx)
    local p = event.payload
    for i = 1, p.outputs or 1 do
      assert(kafka.produce { topic = "%(out)s", key = event.aggregate_id,
        value = json.encode { n = p.n, i = i, attempt = ctx.attempt } })
    end
    if p.sleep then require "moontide.timer".sleep(p.sleep) end
    if ctx.attempt <= (p.fails or 0) then error("fails on purpose") end
    if p.dead then return ctx.dead("dead on purpose") end
    if p.skip then return ctx.skip("skipped on purpose") end
    log.debug("done", { n = p.n })
  end }
"""


def settings_of(topics, *names, **more):
    return {"kafka": {"brokers": topics.bootstrap, "topics": list(names),
                      "group_id": topics.prefix},
            "rdkafka": dict(QUICK_GROUP), "positions": {"interval": "50ms"}, **more}


class Committed:
    """Reads what is committed of a topic, as it comes: (key, value) in order of offsets."""

    def __init__(self, topics, topic, partitions=1):
        self.consumer = topics.consumer(isolation_level="read_committed")
        self.consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING)
                              for p in range(partitions)])
        self.records = []

    def read(self):
        while records := self.consumer.consume(1000, 0.05):
            for record in records:
                assert record.error() is None
                self.records.append((record.key().decode(), json.loads(record.value())))
        return self.records

    def has(self, count):
        return len(self.read()) >= count

    def close(self):
        self.consumer.close()


def assert_once_and_in_order(records, expected):
    """`expected`: (n, i) -> key; n rises within a key, and i within n."""
    seen = [(r["n"], r["i"]) for _, r in records]
    assert len(seen) == len(set(seen)), f"{len(seen) - len(set(seen))} doubled"
    assert set(seen) == set(expected), (f"{len(set(expected) - set(seen))} lost, "
                                        f"{len(set(seen) - set(expected))} never written")
    last = defaultdict(lambda: (-1, 0))
    for key, r in records:
        assert expected[r["n"], r["i"]] == key
        assert (r["n"], r["i"]) > last[key], f"{key}: {last[key]} before {r}"
        last[key] = r["n"], r["i"]


def events_of(rng, first, number, keys=97, **chances):
    """(key, envelope) of so many events, and what is to come out: (n, i) -> key."""
    records, expected = [], {}
    for n in range(first, first + number):
        key, outputs = f"k{rng.randrange(keys)}", rng.choice((0, 1, 1, 1, 2, 3))
        payload = {"n": n, "outputs": outputs}
        if rng.random() < chances.get("fails", 0):
            payload["fails"] = rng.choice((1, 2))
        records.append((key, envelope(n, aggregate_id=key, payload=payload), None))
        expected.update({(n, i): key for i in range(1, outputs + 1)})
    return records, expected


def test_what_fails_gives_nothing_out_and_what_ends_well_gives_once(topics, make_host):
    """Design 4: retries and dead letters leave nothing of the failed attempt; skips count."""
    source, out = topics.create("in", 1), topics.create("out", 1)
    host = make_host(settings=settings_of(topics, source),
                     handlers={"transforms": TRANSFORMS % {"out": out}}).start()
    payloads = [{"fails": 2, "outputs": 2}, {"dead": True}, {"skip": True}, {"outputs": 0}, {}]
    topics.produce(source, [("k", envelope(n, aggregate_id="k", payload={"n": n, **p}), None)
                            for n, p in enumerate(payloads)])
    reader = Committed(topics, out)
    host.wait(lambda: reader.has(4), 30, "four outputs")
    group = f"{topics.prefix}.transforms"
    host.wait(lambda: topics.committed(source, group) == {0: 5}, 20, "the group's offset")
    assert [(r["n"], r["i"], r["attempt"]) for _, r in reader.read()] == [
        (0, 1, 3), (0, 2, 3), (2, 1, 1), (4, 1, 1)]
    assert host.metric("events_published_total", topic=out, status="ok") == 4
    reader.close()
    assert host.stop() == 0


def test_each_output_once_and_in_order_when_host_and_workers_are_killed(topics, make_host):
    """Design 4, C12: kill -9 of the host and of workers in the middle of transactions."""
    rng, number = make_rng("transactions"), sized(4000, 40_000)
    source, out = topics.create("in", 4), topics.create("out", 3)
    records, expected = events_of(rng, 0, number, fails=0.01)
    topics.produce(source, records)
    host = make_host(settings=settings_of(topics, source),
                     handlers={"transforms": TRANSFORMS % {"out": out}}).start()
    reader = Committed(topics, out, 3)
    fates = sorted((rng.randrange(len(expected) * 9 // 10), fate)
                   for fate in ["host"] * 4 + ["worker"] * 8)
    print("fates:", fates)
    for at, fate in fates:
        host.wait(lambda: reader.has(at), 60 * SLOWER, f"{at} outputs")
        if fate == "host":
            host.kill()
            host.start()
        else:
            host.wait(lambda: kill_a_worker(host, rng), 20, "a worker to kill")
    host.wait(lambda: reader.has(len(expected)), 90 * SLOWER, "all outputs")
    group = f"{topics.prefix}.transforms"
    host.wait(lambda: topics.committed(source, group) == topics.ends(source), 20,
              "the group's offsets at the ends")
    assert_once_and_in_order(reader.read(), expected)
    reader.close()
    assert host.stop() == 0


def owned(host):
    reply = host.ask("/v1/sources")
    return [p for p in reply.json()["partitions"]
            if p["source"] == "kafka" and p["state"] == "running"] if reply else []


def test_a_frozen_host_that_wakes_up_adds_nothing(topics, make_host):
    """Design 13.2, C12: two hosts; one is stopped in the midst of it, its partitions move, and
    it goes on where it was: nothing of it is committed, and no output is doubled or lost."""
    rng, number = make_rng("frozen"), sized(1500, 15_000)
    source, out = topics.create("in", 4), topics.create("out", 2)
    settings = settings_of(topics, source)
    hosts = [make_host(settings=settings, handlers={"transforms": TRANSFORMS % {"out": out}})
             for _ in range(2)]
    expected = {}

    def write(part):
        records, more = events_of(rng, part * number, number)
        topics.produce(source, records)
        expected.update(more)

    reader = Committed(topics, out, 2)
    hosts[0].start()
    hosts[0].wait(lambda: len(owned(hosts[0])) == 4, 40, "the first host to get all")
    hosts[1].start()
    for host in hosts:
        host.wait(lambda: len(owned(host)) == 2, 60, "two partitions each")
    write(0)
    hosts[0].wait(lambda: reader.has(len(expected) // 5), 60 * SLOWER, "some outputs")
    hosts[0].process.send_signal(signal.SIGSTOP)
    try:
        hosts[1].wait(lambda: len(owned(hosts[1])) == 4, 60, "the other to take all")
        write(1)
        hosts[1].wait(lambda: reader.has(len(expected)), 90 * SLOWER, "all outputs")
    finally:
        hosts[0].process.send_signal(signal.SIGCONT)
    for host in hosts:
        host.wait(lambda: len(owned(host)) == 2, 90, "two partitions each again")
    write(2)
    hosts[0].wait(lambda: reader.has(len(expected)), 90 * SLOWER, "the last outputs")
    group = f"{topics.prefix}.transforms"
    hosts[0].wait(lambda: topics.committed(source, group) == topics.ends(source), 30,
                  "the group's offsets at the ends")
    assert_once_and_in_order(reader.read(), expected)
    reader.close()
    for host in hosts:
        assert host.stop() == 0


def test_a_broker_that_is_killed_leaves_each_output_once(scratch, make_host):
    """Requirement S4-18, C12: kill -9 of the broker while transactions are under way, twice: what
    is not known to be committed is found out."""
    rng, number = make_rng("broker kills"), sized(4000, 20_000)
    kafka = Kafka(scratch / "kafka.killed").init().start()
    try:
        topics = Topics(kafka, "killed")
        source, out = topics.create("in", 2), topics.create("out", 2)
        records, expected = events_of(rng, 0, number)
        settings = settings_of(topics, source)
        settings["rdkafka"].update({"reconnect.backoff.max.ms": 500})
        host = make_host(settings=settings, handlers={"transforms": TRANSFORMS % {"out": out}})
        topics.produce(source, records)
        host.start()

        def written():
            return host.metric("events_published_total", topic=out, status="ok")

        for at in (len(expected) // 5, len(expected) // 2):
            host.wait(lambda: written() >= at, 90 * SLOWER, f"{at} outputs")
            kafka.end(signal.SIGKILL)
            kafka.start()
        host.wait(lambda: written() == len(expected), 120 * SLOWER, "all outputs")
        reader = Committed(topics, out, 2)
        host.wait(lambda: reader.has(len(expected)), 30, "all can be read")
        assert_once_and_in_order(reader.read(), expected)
        reader.close()
        assert host.stop() == 0
    finally:
        kafka.stop()


def test_a_handler_may_change_to_transactions_and_back_while_it_runs(topics, make_host):
    """Design 8, C12: nothing is lost or doubled where a version begins or ends to have them."""
    rng = make_rng("changes")
    source, out = topics.create("in", 2), topics.create("out", 1)
    within = TRANSFORMS % {"out": out}
    without = within.replace('transaction = "kafka", ', "")
    host = make_host(settings=settings_of(topics, source), handlers={"transforms": without})
    host.start()
    reader, expected = Committed(topics, out), {}
    for part, text in enumerate((without, within, without, within)):
        host.handler("transforms", text)
        host.wait(lambda: len(host.log_lines("handler loaded")) == part + 1, 20, "the version")
        records, more = events_of(rng, part * 200, 200)
        topics.produce(source, records)
        expected.update(more)
        host.wait(lambda: reader.has(len(expected)), 60, "all outputs so far")
    assert_once_and_in_order(reader.read(), expected)
    assert host.stop() == 0
    records, more = events_of(rng, 800, 200)
    topics.produce(source, records)
    expected.update(more)
    host.start()
    host.wait(lambda: reader.has(len(expected)), 60, "all outputs")
    assert_once_and_in_order(reader.read(), expected)
    reader.close()


PUBLISHES = """
local events = require "moontide.events"
return { subscribes = { "*" }, start = "earliest", transaction = "kafka",
  retry = { max_attempts = 3, base = "5ms" },
  handle = function(event, ctx)
    local id = assert(events.publish { type = "Seen", aggregate_type = "Thing",
      aggregate_id = event.aggregate_id, payload = { n = event.payload.n, try = ctx.attempt } })
    if ctx.attempt < 3 then error("fails on purpose") end
  end }
"""


def test_published_events_are_part_of_it(topics, make_host):
    """Interfaces 7: events.publish where it goes to Kafka."""
    source, out = topics.create("in", 1), topics.create("domain.Thing", 1)
    host = make_host(settings=settings_of(topics, source,
                                          publish={"topic_prefix": topics.prefix + ".domain."}),
                     handlers={"publishes": PUBLISHES}).start()
    topics.produce(source, [("k", envelope(n, aggregate_id="k"), None) for n in range(3)])
    reader = Committed(topics, out)
    host.wait(lambda: reader.has(3), 30, "three events")
    group = f"{topics.prefix}.publishes"
    host.wait(lambda: topics.committed(source, group) == {0: 3}, 20, "the group's offset")
    assert [(key, e["eventType"], e["payload"]) for key, e in reader.read()] == [
        ("k", "Seen", {"n": n, "try": 3}) for n in range(3)]
    reader.close()


def test_more_than_a_delivery_may_give_is_a_limit(topics, make_host):
    """Interfaces 7, class limit: 1,000 records go out together, one more does not."""
    source, out = topics.create("in", 1), topics.create("out", 1)
    host = make_host(settings=settings_of(topics, source),
                     handlers={"transforms": TRANSFORMS % {"out": out}}).start()
    topics.produce(source, [("k", envelope(n, aggregate_id="k", payload={"n": n, "outputs": many}),
                             None) for n, many in enumerate((1000, 1001, 1))])
    reader = Committed(topics, out)
    host.wait(lambda: reader.has(1001), 30, "1,001 outputs")
    letter = host.log_lines("dead letter")[0]
    assert letter["class"] == "limit" and "1000 records" in letter["err"], letter
    assert [r["i"] for _, r in reader.read()] == [*range(1, 1001), 1]
    reader.close()


PLAIN = """
local log = require "moontide.log"
return { subscribes = { "*" }, start = "earliest", handle = function(event) end }
"""


def test_a_topic_that_is_missing_is_waited_for_and_stops_nobody_else(topics, make_host):
    """Requirement S4-19, C12: the log says which; the others' positions are written."""
    source, out = topics.create("in", 1), f"{topics.prefix}.out"
    settings = settings_of(topics, source)
    host = make_host(settings=settings, handlers={"transforms": TRANSFORMS % {"out": out},
                                                  "plain": PLAIN}).start()
    topics.produce(source, [("k", envelope(n, aggregate_id="k"), None) for n in range(5)])
    host.wait(lambda: any(out in line["err"] for line in host.log_lines("positions not saved")),
              60, "the missing topic's name")

    def saved():
        rows = {r.key(): json.loads(r.value())
                for r in topics.read_all(f"{topics.prefix}.positions") if r.value()}
        return {json.loads(key)[0]: row["next"] for key, row in rows.items()}

    host.wait(lambda: saved().get("plain") == 5, 20, "the other handler's position")
    assert saved()["transforms"] == 0
    assert topics.create("out", 1) == out
    reader = Committed(topics, out)
    host.wait(lambda: reader.has(5), 60, "all outputs")
    assert [r["n"] for _, r in reader.read()] == [0, 1, 2, 3, 4]
    reader.close()


def test_what_it_cannot_be_had_with_is_refused(topics, make_host):
    """Bad input is named with file, line and field, by check and by the host."""
    brokers = {"kafka": {"brokers": topics.bootstrap, "topics": ["t"], "group_id": "g"}}
    database = {"database": {"url": "postgres://nobody@127.0.0.1:1/none"}}
    handler = 'return { subscribes = { "*" }, transaction = "kafka", %s }'
    fine = "handle = function() end"
    cases = [
        (fine, {}, "kafka.brokers"),
        (fine, {"kafka": {"brokers": "embedded", "topics": ["t"]}}, "real Kafka"),
        (fine, {**brokers, **database}, 'outbox.enabled = "off"'),
        ("batch = { max = 5 }, handle_batch = function() end", brokers, "h.lua:1: transaction:"),
        (fine + ', on_dead = "park"', brokers, "h.lua:1: on_dead:"),
        (fine, {**brokers, "handlers": {"h": {"on_dead": "park"}}}, "handlers.h.on_dead:"),
        (fine + ', transaction = "redis"', brokers, "h.lua:1: transaction:"),
    ]
    for body, settings, expected in cases:
        host = make_host(settings=settings, handlers={"h": handler % body})
        done = host.cli("check", "-c", str(host.conf), check=False)
        assert done.returncode != 0 and expected in done.stderr, (expected, done.stderr)
    host = make_host(settings=brokers, handlers={"h": handler % fine})
    assert "ok" in host.cli("check", "-c", str(host.conf)).stdout
