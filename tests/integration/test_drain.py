"""SIGTERM: what runs ends well or is handed back, in time, and nothing is doubled."""

import json
import signal
import time

from harness import Host, Topics, envelope
from scenes import QUICK_GROUP, count, make_seen, recorder, wait_count
from servers import Kafka, wait_for

KEY = "00000000-0000-4000-8000-00000000000%d"

#: Without an inbox, so that what runs twice is seen twice. Waits when it is told.
PLAIN = """
local db, timer = require "moontide.db", require "moontide.timer"
return {
  subscribes = { %s }, start = "earliest", timeout = "60s", allow = { db = true },
  retry = { max_attempts = 5, base = "20s", cap = "20s" },
  handle = function(event, ctx)
    if event.payload.fails then error("again later") end
    if event.payload.dead then return ctx.dead("by its payload") end
    if event.payload.sleeps then timer.sleep(event.payload.sleeps) end
    db.exec("INSERT INTO seen (handler, event_id, n) VALUES ($1, $2, $3)",
      ctx.handler, event.id, event.payload.n)
  end,
}
"""


def on_outbox(url, **more):
    return {"database": {"url": url}, **more}


def publish(database, n, key, **payload):
    return database.publish("Thing", "T", KEY % key, {"n": n, **payload})


def twice(database):
    return database.query("select handler, n, count(*) from seen group by 1, 2"
                          " having count(*) > 1")


def test_what_runs_retries_catches_up_and_is_stored_when_the_signal_comes(database, make_host):
    make_seen(database)
    settings = on_outbox(database.url, drain_timeout="20s", window={"events": 100})
    host = make_host(settings=settings, handlers={"plain": PLAIN % '"*"'}).start()
    publish(database, 0, 0, fails=True)             # waits for its next attempt
    publish(database, 1, 0)                         # behind it
    host.wait(lambda: host.metric("event_dispatch_failures_total", handler="plain") >= 1
              or host.ask("/v1/status").json()["deliveries"]["backoff"] == 1, 20, "it retries")
    host.handler("late", PLAIN % '"*"')             # has all of it to catch up with
    for n in range(2, 400):
        publish(database, n, 1 + n % 5)
    publish(database, 1000, 6, sleeps="2s")
    publish(database, 1001, 7, dead=True)
    host.wait(lambda: host.metric("moontide_inflight") > 0, 20, "something runs")
    locking = database.connect()
    with locking.cursor() as cursor:                # a dead letter stays on its way
        cursor.execute("lock table event_dead_letters in exclusive mode")
        host.process.send_signal(signal.SIGTERM)
        host.wait(lambda: host.log_lines("draining"), 10, "draining")
        wait_for(lambda: host.ask("/healthz") is None or
                 host.ask("/healthz").json()["status"] == "draining", 10, "it says so")
    locking.rollback()
    locking.close()
    assert host.process.wait(25) == 0, host.log_text()[-2000:]
    assert host.log_lines("drained")
    assert twice(database) == []
    host.start()
    for handler in ("plain", "late"):
        wait_count(host, database, 399, where=f"handler = '{handler}'")
    wait_count(host, database, 2, "event_dead_letters")
    assert twice(database) == []
    host.stop()


def test_with_the_database_away_it_ends_in_time_and_says_why(own_postgres, make_host, tmp_path):
    url = own_postgres.url("postgres")
    Host(tmp_path / "migrate", settings=on_outbox(url)).cli(
        "migrate", "up", "-c", str(tmp_path / "migrate/moontide.lua"))
    own_postgres.query("create table seen (handler text, event_id text, n bigint)")
    host = make_host(settings=on_outbox(url, drain_timeout="3s"),
                     handlers={"plain": PLAIN % '"*"'}).start()
    own_postgres.query("select publish_event('Thing', 'T', %s, '{\"n\": 1}')", (KEY % 1,))
    host.wait(lambda: own_postgres.query("select count(*) from seen")[0][0] == 1, 20, "it runs")
    own_postgres.query("select publish_event('Thing', 'T', %s, '{\"n\": 2, \"sleeps\": \"1s\"}')",
                       (KEY % 1,))
    host.wait(lambda: host.metric("moontide_inflight", handler="plain") == 1, 20, "it runs")
    own_postgres.stop()
    began = time.monotonic()
    assert host.stop(timeout=15) == 1
    assert time.monotonic() - began < 8
    said = host.log_lines("not drained in time") + host.log_lines("partition was not saved, its last events come again")
    assert said and "database" in json.dumps(said), host.log_text()[-2000:]


def test_with_the_broker_away_it_ends_in_time(scratch, make_host):
    """Without PostgreSQL the positions cannot be written then: exit code 1 says so."""
    kafka = Kafka(scratch / f"kafka-drain{time.monotonic_ns()}").init().start()
    try:
        topics = Topics(kafka, "drain")
        topic = topics.create("events", 2)
        host = make_host(settings={
            "kafka": {"brokers": topics.bootstrap, "topics": [topic], "group_id": "drain"},
            "rdkafka": QUICK_GROUP, "drain_timeout": "3s", "positions": {"interval": "1m"}},
            handlers={"one": """return { subscribes = { "*" }, start = "earliest",
                                         handle = function() end }"""}).start()
        topics.produce(topic, [("k", envelope(n), None) for n in range(10)])
        host.wait(lambda: host.metric("moontide_settled_total", handler="one") == 10, 30, "done")
    finally:
        kafka.stop()
    began = time.monotonic()
    assert host.stop(timeout=30) == 1, host.log_text()[-2000:]
    assert time.monotonic() - began < 15
    said = host.log_lines("not drained in time") + host.log_lines("partition was not saved, its last events come again")
    assert said and "broker" in json.dumps(said), host.log_text()[-2000:]


def test_an_embedded_broker_without_a_database_works_and_drains(make_host):
    host = make_host(settings={"kafka": {"brokers": "embedded", "topics": ["events"]}},
                     handlers={"one": """return { subscribes = { "*" }, start = "earliest",
                       retry = { max_attempts = 1 },
                       handle = function(e) if e.payload.dead then error("no") end end }"""}).start()
    topics = Topics(type("Embedded", (), {
        "bootstrap": host.ask("/v1/status").json()["kafka"]["bootstrap"]}), "embedded")
    topics.produce("events", [("k", envelope(n, payload={"dead": n == 5}), None)
                              for n in range(10)])
    host.wait(lambda: host.metric("moontide_settled_total", handler="one") == 10, 30,
              "positions and dead letters have their topics")
    assert host.metric("moontide_settled_total", handler="one", how="dead") == 1
    began = time.monotonic()
    assert host.stop() == 0
    assert time.monotonic() - began < 8


def test_two_hosts_and_a_drain_double_nothing(database, topics, make_host):
    """One drains while the other goes on: what it has in hand ends there."""
    make_seen(database)
    topic = topics.create("events", 4)
    settings = {"database": {"url": database.url}, "rdkafka": QUICK_GROUP,
                "outbox": {"enabled": "off"},
                "kafka": {"brokers": topics.bootstrap, "topics": [topic],
                          "group_id": topics.prefix}}
    hosts = [make_host(settings=settings, handlers={"recorder": recorder()}).start()
             for _ in range(2)]
    for round in range(2):
        first = round * 1000
        topics.produce(topic, [(f"k{n % 9}", envelope(n, aggregate_id=f"k{n % 9}"), None)
                               for n in range(first, first + 1000)])
        wait_count(hosts[1], database, first + 100)
        assert hosts[0].stop() == 0
        wait_count(hosts[1], database, first + 1000, timeout=60)
        hosts[0].start()
    assert count(database) == 2000 and twice(database) == []
    assert sum(h.metric("moontide_duplicates_total") for h in hosts) == 0
    for host in hosts:
        assert host.stop() == 0
