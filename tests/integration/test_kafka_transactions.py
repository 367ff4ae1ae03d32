"""transaction = "kafka": Kafka → handler → Kafka, each output exactly once for readers of
committed records, and in order per key."""

import json
import signal
import time
from collections import defaultdict

from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from harness import SLOWER, envelope
from scenes import QUICK_GROUP, kill_a_worker, make_rng, sized

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

    def __init__(self, topics, topic):
        self.consumer = topics.consumer(isolation_level="read_committed")
        self.consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING)
                              for p in topics.ends(topic)])
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
    reader = Committed(topics, out)
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
