"""No handler stops another: one that is slow, held or new reads by itself (M4)."""

import json

import pytest
from harness import envelope
from scenes import (QUICK_GROUP, assert_once_and_in_order, batch_recorder, count, make_seen, sized,
                    wait_count)

#: Remembers what it saw, and takes its time for it while `config.pause` says so.
DAWDLER = """
local db, timer = require "moontide.db", require "moontide.timer"
return {
  subscribes = { "*" },
  start = "earliest",
  timeout = "60s",
  config = { pause = 0 },
  transaction = true,
  handle = function(event, ctx)
    if ctx.config.pause > 0 then timer.sleep(ctx.config.pause) end
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, '')",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""

SMALL = {"window": {"events": 200, "bytes": 1 << 20}}


class Feed:
    """The same numbered events into a topic or into the outbox."""

    def __init__(self, kind, database, request):
        self.kind, self.database, self.expected = kind, database, {}
        self.settings = {"database": {"url": database.url}, **json.loads(json.dumps(SMALL))}
        if kind == "kafka":
            self.topics = request.getfixturevalue("topics")
            self.topic = self.topics.create("events", partitions=3)
            self.settings["kafka"] = {"brokers": self.topics.bootstrap, "topics": [self.topic]}
            self.settings["rdkafka"] = QUICK_GROUP
            self.settings["outbox"] = {"enabled": "off"}

    def write(self, number, keys=20):
        first = len(self.expected)
        bodies = [json.loads(envelope(n, aggregate_id=f"00000000-0000-4000-8000-{n % keys:012d}",
                                      payload={"n": n // keys, "text": "x" * 200}))
                  for n in range(first, first + number)]
        self.expected.update({b["id"]: (b["aggregateId"], b["payload"]["n"]) for b in bodies})
        if self.kind == "kafka":
            self.topics.produce(self.topic, [(b["aggregateId"], json.dumps(b).encode(), None)
                                             for b in bodies])
            return
        for at in range(0, number, 500):
            self.database.query("select count(*) from publish_events(%s)",
                                (json.dumps(bodies[at:at + 500]),))


@pytest.fixture(params=["kafka", "outbox"])
def feed(request, database):
    make_seen(database)
    return Feed(request.param, database, request)


def detached(host, handler):
    return host.metric("moontide_detached", handler=handler)


def test_a_slow_handler_stops_nobody_and_catches_up_in_order(feed, make_host):
    """Issue 5, windows and detaching; M4, L1."""
    database, number = feed.database, sized(4000, 40_000)
    feed.settings["handlers"] = {"slow": {"config": {"pause": 5}}}
    host = make_host(settings=feed.settings,
                     handlers={"slow": DAWDLER, "one": batch_recorder(),
                               "two": batch_recorder()}).start()
    feed.write(number)
    wait_count(host, database, 2 * number, where="handler <> 'slow'")
    assert count(database, where="handler = 'slow'") < number / 10
    host.wait(lambda: detached(host, "slow") == 1, 10, "the slow one has left")
    assert detached(host, "one") == detached(host, "two") == 0
    assert host.ask("/v1/handlers/slow").json()["state"] == "behind"
    host.wait(lambda: host.metric("event_handler_lag_seconds", handler="slow") > 0, 10, "its lag")

    # Killed meanwhile: each goes on from its own place.
    host.kill()
    host.settings["handlers"]["slow"]["config"]["pause"] = 0
    host.write_conf()
    host.start()
    feed.write(500)
    wait_count(host, database, 3 * (number + 500))
    host.wait(lambda: detached(host, "slow") == 0, 20, "level again")
    feed.write(100)
    wait_count(host, database, 3 * (number + 600))
    for handler in ("slow", "one", "two"):
        assert_once_and_in_order(database, handler, feed.expected)
    assert host.stop() == 0


def test_a_held_handler_comes_back_and_nobody_waits_for_it(feed, make_host):
    """M4, M7: a backlog of many windows, read beside what is live."""
    database, number = feed.database, sized(3000, 30_000)
    host = make_host(settings=feed.settings,
                     handlers={"held": DAWDLER, "other": batch_recorder()}).start()
    feed.write(100)
    wait_count(host, database, 200)
    host.cli("handlers", "pause", "held", "--url", host.url)
    host.wait(lambda: detached(host, "held") == 1, 10, "held")
    feed.write(number)
    wait_count(host, database, number + 100, where="handler = 'other'")
    assert count(database, where="handler = 'held'") == 100
    host.cli("handlers", "resume", "held", "--url", host.url)
    feed.write(500)  # live events meanwhile
    wait_count(host, database, 2 * (number + 600))
    host.wait(lambda: detached(host, "held") == 0, 20, "level again")
    for handler in ("held", "other"):
        assert_once_and_in_order(database, handler, feed.expected)


def test_a_new_handler_reads_old_events_beside_the_others(feed, make_host):
    """M4: `start = "earliest"` of a newcomer rewinds nobody."""
    database, number = feed.database, sized(3000, 30_000)
    host = make_host(settings=feed.settings, handlers={"first": batch_recorder()}).start()
    feed.write(number)
    wait_count(host, database, number)
    host.handler("newcomer", DAWDLER)
    feed.write(500)
    wait_count(host, database, 2 * (number + 500))
    host.wait(lambda: detached(host, "newcomer") == 0, 20, "level")
    for handler in ("first", "newcomer"):
        assert_once_and_in_order(database, handler, feed.expected)
