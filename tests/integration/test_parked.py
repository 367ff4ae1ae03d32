"""The parked queue: long retries, what follows them, dead letters that are waited for, and
events that a flag holds; durable and in the order of their lanes (design 3.8, M2, M7)."""

import json

import pytest
from harness import envelope
from scenes import QUICK_GROUP, count, make_seen, wait_count
from servers import wait_for

#: Fails for events whose payload says so, as `config.fails` says.
FRAGILE = """
return {
  subscribes = { "*" },
  start = "earliest",
  transaction = true,
  on_dead = "%(on_dead)s",
  retry = { max_attempts = %(attempts)d, base = "50ms" },
  config = { fails = "" },
  handle = function(event, ctx)
    local how = event.payload.bad and ctx.config.fails
    if how == "later" and event.attempt == 1 then return ctx.retry("not yet", "2s") end
    if how == "dead" then return ctx.dead("never") end
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, '')",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""

KEYS = [f"00000000-0000-4000-8000-{k:012d}" for k in range(5)]


def fragile(on_dead="continue", attempts=5):
    return FRAGILE % {"on_dead": on_dead, "attempts": attempts}


class Feed:
    """Numbered events of five keys; some are bad."""

    def __init__(self, kind, database, request):
        self.kind, self.database, self.n = kind, database, 0
        self.settings = {"database": {"url": database.url}, "retry": {"park_after": "1s"}}
        if kind == "kafka":
            self.topics = request.getfixturevalue("topics")
            self.topic = self.topics.create("events", partitions=2)
            self.settings["kafka"] = {"brokers": self.topics.bootstrap, "topics": [self.topic]}
            self.settings["rdkafka"] = QUICK_GROUP
            self.settings["outbox"] = {"enabled": "off"}

    def write(self, number, bad=(), aggregate_type="Test"):
        bodies = []
        for n in range(self.n, self.n + number):
            bodies.append(json.loads(envelope(
                n, aggregate_id=KEYS[n % 5], aggregate_type=aggregate_type,
                payload={"n": n, "bad": n in bad})))
        self.n += number
        if self.kind == "kafka":
            self.topics.produce(self.topic, [(b["aggregateId"], json.dumps(b).encode(),
                                              [("x-kept", b"header")]) for b in bodies])
        else:
            self.database.query("select count(*) from publish_events(%s)", (json.dumps(bodies),))


@pytest.fixture(params=["kafka", "outbox"])
def feed(request, database):
    make_seen(database)
    return Feed(request.param, database, request)


def of_key(database, key, handler="h"):
    return [r[0] for r in database.query(
        "select n from seen where handler = %s and key = %s order by place", (handler, KEYS[key]))]


def parked(database, where="true"):
    return count(database, "event_parked", where)


def configure(host, **config):
    host.settings["handlers"]["h"] = {"config": config}
    host.write_conf()


def test_a_long_retry_waits_in_the_database_and_its_lane_with_it(feed, make_host):
    """Design 3.8; S1-27: what follows it waits, other lanes go on, and a restart changes nothing."""
    database = feed.database
    host = make_host(settings=feed.settings, handlers={"h": fragile()})
    configure(host, fails="later")
    host.start()
    feed.write(20, bad={5})  # of key 0: 0 5 10 15
    wait_count(host, database, 17)
    host.wait(lambda: parked(database) == 3, 10, "one and its followers are parked")
    assert parked(database, "reason = 'retry' and place is not null and attempts = 1 and is_head") == 1
    assert parked(database, "reason = 'behind' and not is_head") == 2
    assert of_key(database, 0) == [0]
    host.wait(lambda: host.metric("moontide_parked", reason="behind") == 2, 10, "the metric")
    host.kill()
    host.start()
    feed.write(20)
    wait_count(host, database, 40)
    for key in range(5):
        assert of_key(database, key) == list(range(key, 40, 5))
    host.wait(lambda: parked(database) == 0, 10, "the queue is empty")
    feed.write(5)
    wait_count(host, database, 45)
    assert parked(database) == 0  # the lane is free again
    assert host.stop() == 0


def test_followers_of_a_dead_letter_wait_and_go_on_in_order(feed, make_host):
    """M2: on_dead = "park", redrive and discard."""
    database = feed.database
    host = make_host(settings=feed.settings, handlers={"h": fragile("park")})
    configure(host, fails="dead")
    host.start()
    feed.write(20, bad={5, 6})  # keys 0 and 1
    wait_count(host, database, 14)
    host.wait(lambda: parked(database, "reason = 'behind'") == 4, 10, "followers are parked")
    assert count(database, "event_dead_letters", "keeps_order and state = 'dead'") == 2
    host.stop()
    configure(host, fails="")
    host.start()
    feed.write(10)
    wait_count(host, database, 14 + 6)
    host.wait(lambda: parked(database) == 8, 10, "later ones wait, too, after a restart")

    letters = dict(database.query("select aggregate_id, id from event_dead_letters"))
    host.cli("dead-letters", "discard", str(letters[KEYS[1]]), "--reason", "a test", "--url", host.url)
    host.wait(lambda: of_key(database, 1) == [1, 11, 16, 21, 26], 10, "without the discarded one")
    assert of_key(database, 0) == [0]
    host.cli("dead-letters", "redrive", str(letters[KEYS[0]]), "--url", host.url)
    host.wait(lambda: of_key(database, 0) == [0, 5, 10, 15, 20, 25], 10, "redriven, then those behind")
    host.wait(lambda: parked(database) == 0, 10, "the queue is empty")
    if feed.kind == "kafka":
        assert database.value("select count(*) from event_dead_letters "
                              "where headers ->> 'x-kept' = 'header'") == 2


def test_a_flag_holds_a_part_of_the_events(feed, make_host):
    """M7, C11, S1-79: aggregate:<type> off holds; on drains in order; the others go on."""
    database = feed.database
    host = make_host(settings=feed.settings, handlers={"h": fragile()}).start()
    feed.write(10, aggregate_type="Thing")
    wait_count(host, database, 10)
    host.cli("flags", "set", "aggregate:Thing", "off", "--url", host.url)
    host.wait(lambda: host.metric("moontide_flag", name="aggregate:Thing") == 0, 5, "off")
    feed.write(10, aggregate_type="Thing")
    feed.write(5, aggregate_type="Other")  # of the same keys: order comes first
    host.wait(lambda: parked(database) == 15, 10, "held")
    assert count(database) == 10
    host.cli("flags", "set", "aggregate:Thing", "on", "--url", host.url)
    wait_count(host, database, 25)
    for key in range(5):
        assert of_key(database, key) == list(range(key, 25, 5))
    host.wait(lambda: parked(database) == 0, 10, "the queue is empty")


def test_a_percentage_holds_the_keys_beyond_it(feed, make_host):
    """M7: a key keeps its answer; the rest waits and drains in order."""
    database = feed.database
    host = make_host(settings=feed.settings, handlers={"h": fragile()}).start()
    host.cli("flags", "set", "handler:h", "40%", "--url", host.url)
    host.wait(lambda: host.metric("moontide_flag", name="handler:h") == 0.4, 5, "40 %")
    feed.write(100)
    host.wait(lambda: parked(database) + count(database) == 100, 10, "run or held")
    ran = {row[0] for row in database.query("select distinct key from seen")}
    assert count(database) == 20 * len(ran)
    feed.write(50)
    host.wait(lambda: parked(database) + count(database) == 150, 10, "the same keys")
    assert {row[0] for row in database.query("select distinct key from seen")} == ran
    host.cli("flags", "set", "handler:h", "100%", "--url", host.url)
    wait_count(host, database, 150)
    for key in range(5):
        assert of_key(database, key) == list(range(key, 150, 5))


def test_a_handler_stops_after_a_dead_letter(feed, make_host):
    """M2: on_dead = "stop": it waits with everything until somebody resumes it."""
    database = feed.database
    host = make_host(settings=feed.settings,
                     handlers={"h": fragile("stop"), "other": fragile()})
    configure(host, fails="dead")
    host.start()
    feed.write(10, bad={9})
    wait_count(host, database, 9 + 10)
    host.wait(lambda: host.ask("/v1/handlers/h").json()["state"] == "held", 10, "stopped")
    feed.write(10)
    wait_count(host, database, 20, where="handler = 'other'")
    assert count(database, where="handler = 'h'") == 9
    reason = database.value("select reason from event_flags where name = 'handler:h'")
    assert "dead letter of event" in reason
    host.cli("handlers", "resume", "h", "--url", host.url)
    wait_count(host, database, 19, where="handler = 'h'")


def test_what_needs_the_queue_needs_the_database(topics, make_host):
    """Design 5: refused by check, with the file's name."""
    host = make_host(settings={"kafka": {"brokers": topics.bootstrap, "topics": ["x"]}},
                     handlers={"h": fragile("park").replace("transaction = true,", "")})
    done = host.cli("check", "-c", str(host.conf), check=False)
    assert done.returncode == 4
    assert 'h.lua: on_dead = "park" needs database.url' in done.stdout + done.stderr
    host.handler("h", fragile().replace("transaction = true,", ""))
    host.start()
    refused = host.cli("flags", "set", "aggregate:Thing", "off", "--url", host.url, check=False)
    assert refused.returncode == 4 and "database.url" in refused.stderr
    wait_for(lambda: host.stop() == 0, 30, "ends")


def test_people_see_what_waits_and_decide_on_it(feed, make_host):
    """Interfaces 1: deliveries list, retry, skip, dead."""
    database = feed.database
    host = make_host(settings=feed.settings, handlers={
        "h": fragile().replace('"2s"', '"1h"')})
    configure(host, fails="later")
    host.start()
    feed.write(20, bad={5, 6, 7})  # keys 0, 1 and 2
    wait_count(host, database, 11)
    host.wait(lambda: parked(database) == 9, 10, "three lanes are parked")

    def listed(*args):
        done = host.cli("deliveries", "list", "--json", "--url", host.url, *args)
        return json.loads(done.stdout)["deliveries"]

    blocking = {d["aggregateId"]: d for d in listed() if d["blocks"]}
    assert sorted(blocking) == KEYS[:3] and len(listed()) == 9
    assert all(d["state"] == "retry" and d["error"] == "not yet" for d in blocking.values())
    assert len(listed("--state", "behind")) == 6
    host.cli("deliveries", "retry", str(blocking[KEYS[0]]["id"]), "--url", host.url)
    host.wait(lambda: of_key(database, 0) == [0, 5, 10, 15], 10, "tried again at once")
    assert host.cli("deliveries", "skip", "--all", "--url", host.url, check=False).returncode == 2
    host.cli("deliveries", "skip", str(blocking[KEYS[1]]["id"]), "--reason", "a test", "--url", host.url)
    host.wait(lambda: of_key(database, 1) == [1, 11, 16], 10, "skipped, and the lane goes on")
    assert "a test" in database.value("select reason from event_deliveries where outcome = 'skip'")
    host.cli("deliveries", "dead", str(blocking[KEYS[2]]["id"]), "--reason", "no", "--url", host.url)
    host.wait(lambda: of_key(database, 2) == [2, 12, 17], 10, "a dead letter, and the lane goes on")
    assert "no" in database.value("select error from event_dead_letters")
    if feed.kind == "outbox":
        assert database.value("select length(body) from event_dead_letters") > 0
    assert parked(database) == 0
