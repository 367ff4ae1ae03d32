"""moontide.kafka.produce: what handlers write to topics, outside of any transaction."""

import json

from harness import envelope
from scenes import QUICK_GROUP


def settings_of(topics, *names):
    return {"kafka": {"brokers": topics.bootstrap, "topics": list(names),
                      "group_id": topics.prefix},
            "rdkafka": {**QUICK_GROUP, "topic.metadata.propagation.max.ms": 500}}


PRODUCES = """
local json = require "moontide.json"
local kafka = require "moontide.kafka"
local log = require "moontide.log"
return { subscribes = { "*" }, start = "earliest", retry = { max_attempts = 1 },
  allow = { kafka = { "%(out)s", "%(missing)s" } },
  handle = function(event, ctx)
    local p = event.payload
    local ok, err = kafka.produce { topic = p.topic, key = p.key,
      value = p.null and json.null or p.size and ("\\0x\\255y"):rep(p.size / 4) or p.value,
      headers = p.headers }
    if ok then log.info("produced", { n = p.n }) return end
    log.info("refused", { n = p.n, class = err.class, code = err.code, why = err.message })
  end }
"""


def test_a_handler_writes_keys_values_and_headers_as_they_are(topics, make_host):
    """Interfaces 7: kafka.produce; bytes that are no UTF-8, none at all, and more than a ring
    takes."""
    source, out = topics.create("in", 1), topics.create("out", 1, max_message_bytes=4_000_000)
    missing = topics.prefix + ".missing"
    host = make_host(settings=settings_of(topics, source),
                     handlers={"produces": PRODUCES % {"out": out, "missing": missing}}).start()
    wishes = [{"topic": out, "key": "k", "value": "héllo", "headers": {"b": "2", "a": "1"}},
              {"topic": out, "value": ""},
              {"topic": out, "key": "gone", "null": True},
              {"topic": out, "key": "big", "size": 2_000_000},
              {"topic": out, "key": "last", "value": "end"}]
    topics.produce(source, [("one", envelope(n, aggregate_id="one", payload={"n": n, **wish}), None)
                            for n, wish in enumerate(wishes)])
    host.wait(lambda: len(host.log_lines("produced")) == len(wishes), 30, "all are produced")
    assert host.log_lines("refused") == []
    records = topics.read_all(out)
    assert [(r.key(), r.value()) for r in records] == [
        (b"k", "héllo".encode()), (None, b""), (b"gone", None),
        (b"big", b"\0x\xffy" * 500_000), (b"last", b"end")]
    assert records[0].headers() == [("a", b"1"), ("b", b"2")]
    assert host.metric("moontide_effects_total", **{"class": "kafka", "result": "ok"}) == 5
    assert host.metric("events_published_total", topic=out, status="ok") == 5


def test_what_kafka_does_not_take_is_an_error_with_its_class(topics, make_host):
    """Interfaces 7: nil, err with class and code; no topic but those of allow.kafka."""
    source, out = topics.create("in", 1), topics.create("out", 1, max_message_bytes=100)
    missing = topics.prefix + ".missing"
    host = make_host(settings=settings_of(topics, source),
                     handlers={"produces": PRODUCES % {"out": out, "missing": missing}}).start()
    wishes = [{"topic": missing, "value": "x"},
              {"topic": out, "size": 40_000},
              {"topic": out, "size": 9_000_000},
              {"topic": topics.prefix + ".other", "value": "x"}]
    topics.produce(source, [("one", envelope(n, aggregate_id="one", payload={"n": n, **wish}), None)
                            for n, wish in enumerate(wishes)])
    host.wait(lambda: len(host.log_lines("refused")) == 3 and host.log_lines("dead letter"),
              30, "three refusals and a dead letter")
    said = [(line["n"], line["class"], line["code"]) for line in host.log_lines("refused")]
    assert said[0][:2] == ("0", "permanent") and "UNKNOWN_TOPIC" in said[0][2], said
    assert said[1] == ("1", "permanent", "MSG_SIZE_TOO_LARGE")
    assert said[2] == ("2", "permanent", "too_large")
    assert "allow = { kafka" in host.log_lines("dead letter")[0]["err"]
    assert topics.read_all(out) == []


def test_without_brokers_produce_says_so(database, make_host):
    """Interfaces 7: nil, err of class permanent."""
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"produces": PRODUCES % {"out": "out", "missing": "missing"}})
    host.start()
    database.publish("Wish", "Thing", "00000000-0000-4000-8000-000000000001",
                     {"n": 1, "topic": "out", "value": "x"})
    host.wait(lambda: host.log_lines("refused"), 30, "the refusal")
    line = host.log_lines("refused")[0]
    assert (line["class"], line["code"]) == ("permanent", "no_brokers")


def test_a_dry_run_writes_nothing(topics, make_host):
    """Design 7: what leaves the host is remembered, not done."""
    source, out = topics.create("in", 1), topics.create("out", 1)
    host = make_host(settings=settings_of(topics, source),
                     handlers={"produces": PRODUCES % {"out": out, "missing": "missing"}})
    event = json.loads(envelope(1, payload={"n": 1, "topic": out, "value": "x"}))
    (host.folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    answer = host.cli("dry-run", "produces", "-c", str(host.conf), "--file",
                      str(host.folder / "events.jsonl"), "--json")
    assert "kafka.produce" in answer.stdout and out in answer.stdout
    assert topics.ends(out) == {0: 0}
