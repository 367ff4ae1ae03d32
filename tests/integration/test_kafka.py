"""Kafka as it is in the world: kills, rebalances, formats, brokers that go."""

import json
import signal

from confluent_kafka import TopicPartition
from harness import SLOWER, envelope
from scenes import (QUICK_GROUP, analytics_in, analytics_of, assert_once_and_in_order,
                    batch_recorder, copy_handlers, count, ends_and_lag_are_reached, four_handlers,
                    kill_a_worker, make_rng, make_seen, recorder, shop_event, sized, wait_count)
from servers import Kafka, wait_for


def on_kafka(topics, *names, **more):
    """Settings of a host that reads these topics."""
    settings = {"kafka": {"brokers": topics.bootstrap, "topics": list(names),
                          "group_id": topics.prefix},
                "rdkafka": dict(QUICK_GROUP)}
    settings.update(more)
    return settings


def test_nothing_is_lost_doubled_or_inverted_when_host_and_workers_are_killed(
        database, topics, catcher, make_host):
    """Issue 3, done 2; requirements S1-23, S1-45, S1-47, S1-77."""
    rng, number = make_rng("kafka kills"), sized(20_000, 200_000)
    make_seen(database)
    topic = topics.create("events", 8)
    events = [shop_event(rng, i, keys=701) for i in range(number)]
    late = number // 20  # written when all else is done: do all partitions still flow?
    topics.produce(topic, ((key, json.dumps(body), None) for _, key, _, body in events[:-late]))

    settings = four_handlers(database, [topic], topics.bootstrap, mail=catcher.settings())
    settings["kafka"]["group_id"] = topics.prefix
    host = make_host(settings=settings, handlers={"recorder": batch_recorder('"*"')})
    copy_handlers(host)
    host.start()
    fates = sorted((rng.randrange(number - late), fate)
                   for fate in ["host"] * 5 + ["worker"] * 20)
    print("fates:", fates)
    for at, fate in fates:
        wait_count(host, database, at, "event_audit_log", timeout=60 * SLOWER)
        if fate == "host":
            host.kill()
            host.start()
        else:
            host.wait(lambda: kill_a_worker(host, rng), 20, "a worker to kill")

    ours = "event_id like '11111111-%'"
    wait_count(host, database, number - late, "seen", ours, 120 * SLOWER)
    topics.produce(topic, ((key, json.dumps(body), None) for _, key, _, body in events[-late:]))
    wait_count(host, database, number, "seen", ours, 60 * SLOWER)
    ends_and_lag_are_reached(host, topics, topic, topics.prefix)
    # What compliance published comes back through the outbox a moment later.
    host.wait(lambda: database.query(
        "select (select count(*) from event_audit_log) = %s + (select count(*) from domain_events)",
        (number,))[0][0], 60 * SLOWER, "an audit row for every event")
    written = {id: (key, n) for id, key, n, _ in events}
    audited = [row[0] for row in database.query("select event_id from event_audit_log")]
    assert len(audited) == len(set(audited))
    assert set(written) <= set(audited)
    stored = database.query("select id::text from domain_events")
    assert set(audited) - set(written) == {row[0] for row in stored}
    assert analytics_in(database) == analytics_of(body for *_, body in events)
    database.query("delete from seen where event_id not like '11111111-%%'")
    assert_once_and_in_order(database, "recorder", written)
    assert count(database, "event_dead_letters") == 0
    assert host.stop() == 0


def test_topics_are_found_by_regular_expression_also_new_ones(database, topics, make_host):
    """Design 5: regex subscription."""
    make_seen(database)
    first = topics.create("shop.orders", 2)
    pattern = "^" + topics.prefix.replace(".", "\\.") + "\\.shop\\..*"
    settings = on_kafka(topics, pattern, database={"url": database.url})
    settings["rdkafka"]["topic.metadata.refresh.interval.ms"] = 500
    host = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    topics.produce(first, [("k", envelope(1, aggregate_id="k"), None)])
    wait_count(host, database, 1)
    second = topics.create("shop.bids", 2)
    topics.produce(second, [("k", envelope(2, aggregate_id="k"), None)])
    topics.produce(topics.create("other", 1), [("k", envelope(3), None)])
    wait_count(host, database, 2, timeout=45)
    assert host.stop() == 0
    assert {row[0] for row in database.query("select n from seen")} == {1, 2}


def test_cloudevents_and_debezium_records_are_understood(database, topics, make_host):
    """Formats: CloudEvents 1.0 binary and structured, Debezium outbox, native."""
    make_seen(database)
    topic = topics.create("mixed", 1)
    structured = {"specversion": "1.0", "id": "ce-1", "source": "/shop", "type": "OrderPaid",
                  "subject": "o-1", "time": "2026-01-31T12:00:00Z", "aggregatetype": "Order",
                  "datacontenttype": "application/json", "data": {"n": 1}}
    records = [
        ("o-1", json.dumps(structured),
         {"content-type": "application/cloudevents+json; charset=utf-8"}),
        ("o-2", b'{"n": 2}',
         {"ce_specversion": "1.0", "ce_id": "ce-2", "ce_source": "/shop", "ce_type": "OrderPaid",
          "ce_subject": "o-2", "ce_time": "2026-01-31T12:00:00Z",
          "content-type": "application/json"}),
        ("o-3", b'{"n": 3}', {"id": "dbz-3", "eventType": "OrderPaid"}),
        ("o-4", envelope(4, type="OrderPaid", aggregate_id="o-4"), None),
    ]
    host = make_host(settings=on_kafka(topics, topic, database={"url": database.url}),
                     handlers={"recorder": recorder('"OrderPaid"')}).start()
    topics.produce(topic, records)
    wait_count(host, database, 4)
    rows = database.query("select n, key, event_id from seen order by n")
    assert [(n, key) for n, key, _ in rows] == [(i, f"o-{i}") for i in (1, 2, 3, 4)]
    assert "ce-1" in rows[0][2] and "ce-2" in rows[1][2] and rows[2][2] == "dbz-3"
    assert count(database, "event_dead_letters") == 0


def test_two_hosts_share_a_topic_and_one_takes_over_from_the_other(database, topics, make_host):
    """Requirements S4-04, S4-18: one joins, one leaves, one is killed."""
    rng, number = make_rng("rebalance"), 6000
    make_seen(database)
    topic = topics.create("events", 8)
    events = [shop_event(rng, i, keys=211) for i in range(number)]
    settings = on_kafka(topics, topic, database={"url": database.url}, outbox={"enabled": "off"})
    settings["workers"] = {"count": 1}
    hosts = [make_host(settings=settings, handlers={"recorder": recorder()}) for _ in range(3)]

    def write(part):
        chunk = events[part * number // 3:(part + 1) * number // 3]
        topics.produce(topic, ((key, json.dumps(body), None) for _, key, _, body in chunk))

    hosts[0].start()
    write(0)
    wait_count(hosts[0], database, number // 12)
    hosts[1].start()
    hosts[1].wait(lambda: owned(hosts[1]), 40, "the second host to get partitions")
    write(1)
    wait_count(hosts[1], database, number // 2)
    assert hosts[0].stop() == 0
    hosts[2].start()
    hosts[2].wait(lambda: owned(hosts[2]), 40, "the third host to get partitions")
    write(2)
    hosts[1].kill()
    wait_count(hosts[2], database, number, timeout=60 * SLOWER)
    ends_and_lag_are_reached(hosts[2], topics, topic, topics.prefix)
    assert_once_and_in_order(database, "recorder", {id: (key, n) for id, key, n, _ in events})
    assert hosts[2].metric("moontide_kafka_rebalances_total") > 0


def owned(host):
    reply = host.ask("/v1/sources")
    return [p for p in reply.json()["partitions"]
            if p["source"] == "kafka" and p["state"] == "running"] if reply else []


ONLY_KAFKA = """
local json = require "moontide.json"
local log = require "moontide.log"
return {
  subscribes = { "*" },
  start = "earliest",
  retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx)
    if event.payload.bad then error("bad on purpose") end
    log.info("took it", { n = event.payload.n })
  end,
}
"""


def taken(host):
    return [int(line["n"]) for line in host.log_lines("took it")]


def test_without_postgresql_dead_letters_and_positions_live_in_topics(topics, make_host):
    """Design 5: either source alone is enough; interfaces 3: x-* headers of <topic>.dlq."""
    topic = topics.create("events", 2)
    group = topics.prefix
    host = make_host(settings=on_kafka(topics, topic), handlers={"only": ONLY_KAFKA})
    host.start()
    topics.produce(topic, [(f"k{i}", envelope(i, aggregate_id=f"k{i}",
                                              payload={"n": i, "bad": i == 7}), {"mark": "m"})
                           for i in range(20)] + [("broken", b"{not json", {"mark": "b"})])
    host.wait(lambda: len(taken(host)) == 19, 30, "19 events handled")
    ends_and_lag_are_reached(host, topics, topic, group)

    letters = topics.read_all(topic + ".dlq")
    by_key = {letter.key(): letter for letter in letters}
    assert set(by_key) == {b"k7", b"broken"}
    headers = dict(by_key[b"k7"].headers())
    assert by_key[b"k7"].value() == envelope(7, aggregate_id="k7", payload={"n": 7, "bad": True})
    assert headers["mark"] == b"m" and headers["x-handler"] == b"only"
    assert headers["x-error-class"] == b"bug" and b"bad on purpose" in headers["x-error"]
    assert headers["x-attempts"] == b"2" and headers["x-topic"] == topic.encode()
    for name in ("x-handler-version", "x-first-failed-at", "x-failed-at", "x-partition",
                 "x-offset"):
        assert headers[name], name
    assert dict(by_key[b"broken"].headers())["x-error-class"] == b"undecodable"
    assert by_key[b"broken"].value() == b"{not json"

    # The positions are in <group>.positions: a restart goes on, also after a kill.
    assert topics.read_all(f"{group}.positions")
    host.kill()
    topics.produce(topic, [("k", envelope(100, aggregate_id="k", payload={"n": 100}), None)])
    host.start()
    host.wait(lambda: 100 in taken(host), 30, "the event written meanwhile")
    assert taken(host) == [100]
    assert len(topics.read_all(topic + ".dlq")) == 2
    assert host.stop() == 0


def test_an_unreachable_broker_is_waited_for_and_a_restarted_one_is_found_again(
        database, scratch, make_host):
    """Requirements S4-03, S4-17, S4-18."""
    make_seen(database)
    kafka = Kafka(scratch / "kafka.away").init()
    host = make_host(settings={"database": {"url": database.url},
                               "kafka": {"brokers": kafka.bootstrap, "topics": ["events"]},
                               "rdkafka": {**QUICK_GROUP, "reconnect.backoff.max.ms": 500,
                                           "topic.metadata.refresh.interval.ms": 1000}},
                     handlers={"recorder": recorder()})
    try:
        host.start()
        host.wait(lambda: host.log_lines("no broker connected") or host.log_lines("client error"),
                  30, "the host says that it cannot reach the broker")
        reply = host.ask("/readyz")
        assert reply.status == 503 and "Kafka" in reply.body.decode()
        assert host.metric("moontide_kafka_connected") == 0

        kafka.start()
        topic = make_topic(kafka)
        produce(kafka, topic, range(10))
        wait_count(host, database, 10, timeout=60)
        assert host.metric("moontide_kafka_connected") == 1

        kafka.end(signal.SIGTERM)
        host.wait(lambda: host.metric("moontide_kafka_connected") == 0, 30, "broker missed")
        kafka.start()
        produce(kafka, topic, range(10, 20))
        wait_count(host, database, 20, timeout=60)
        host.wait(lambda: host.metric("moontide_kafka_connected") == 1, 30, "broker found")
        assert [row[0] for row in database.query("select n from seen order by n")] == list(range(20))
        assert host.stop() == 0
    finally:
        kafka.stop()


def make_topic(kafka):
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.create_topics([NewTopic("events", num_partitions=2, replication_factor=1)])[
        "events"].result(30)
    return "events"


def produce(kafka, topic, numbers):
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for number in numbers:
        producer.produce(topic, key="k", value=envelope(number, aggregate_id="k"))
    assert producer.flush(30) == 0


def test_offsets_set_back_in_the_group_do_not_repeat_what_was_handled(
        database, topics, make_host):
    """Positions are the truth, the group's offsets only a hint (ARCHITECTURE)."""
    make_seen(database)
    topic = topics.create("events", 1)
    host = make_host(settings=on_kafka(topics, topic, database={"url": database.url}),
                     handlers={"recorder": recorder()}).start()
    topics.produce(topic, [("k", envelope(i, aggregate_id="k"), None) for i in range(50)])
    wait_count(host, database, 50)
    assert host.stop() == 0
    consumer = topics.consumer(group_id=topics.prefix)
    consumer.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
    consumer.close()
    host.start()
    topics.produce(topic, [("k", envelope(99, aggregate_id="k"), None)])
    wait_count(host, database, 51)
    wait_for(lambda: host.metric("moontide_source_lag") == 0, 10, "lag 0")
    assert count(database) == 51
    assert host.metric("moontide_duplicates_total") == 0


def test_the_lag_of_a_partition_is_not_told_before_it_is_known(topics, make_host):
    """moontide_source_lag is absent until the partition's end is known, never a false 0."""
    topic = topics.create("events", 4)
    records = [(f"k{n}", envelope(n, aggregate_id=f"k{n}"), None) for n in range(200)]
    topics.produce(topic, records)
    ends = {f"{topic}/{p}": end for p, end in topics.ends(topic).items()}
    host = make_host(settings={
        "kafka": {"brokers": topics.bootstrap, "topics": [topic], "group_id": topics.prefix},
        "rdkafka": QUICK_GROUP, "drain_timeout": "200ms"}, handlers={"waits": """
local timer = require "moontide.timer"
return { subscribes = { "*" }, start = "earliest", timeout = "10m",
  handle = function() timer.sleep("5m") end }"""}).spawn()
    wait_for(lambda: host.port, 20, "the address")

    def all_told():
        told = {sample: value for sample, value in host.metrics().items()
                if sample.startswith("moontide_source_lag{")}
        assert all(value > 0 for value in told.values()), told
        return len(told) == len(ends) and told
    told = host.wait(all_told, 30, "the lag of all partitions")
    assert sorted(told.values()) == sorted(ends.values())
    host.stop()


def test_a_second_signal_ends_a_host_at_once_with_records_in_hand(database, topics, make_host):
    """Exit code 1 says that it did not drain; a crash would say something else."""
    topic = topics.create("busy", 3)
    endless = """return { subscribes = { "*" }, start = "earliest",
                          handle = function() while true do end end }"""
    host = make_host(settings=on_kafka(topics, topic, database={"url": database.url},
                                       workers={"count": 1, "soft_limit": "120s"}),
                     handlers={"endless": endless}).start()
    topics.produce(topic, [(str(n % 7), envelope(n), None) for n in range(50)])
    host.wait(lambda: host.metric("moontide_window_events", source="kafka") == 50, 30, "taken")
    host.process.send_signal(signal.SIGTERM)
    host.wait(lambda: host.log_lines("draining"), 10, "draining")
    host.process.send_signal(signal.SIGTERM)
    assert host.process.wait(20) == 1, host.log_text()
