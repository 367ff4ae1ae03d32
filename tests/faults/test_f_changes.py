"""Rows F: flags, reloads, broken files and redrives while events flow."""

import json
import time

import pytest
from harness import SLOWER
from oracle import judge, latencies, percentile
from scenes import recorder, wait_count
from stage import plain


def test_F1_a_flag_is_toggled_under_load(stage):
    """Every event done or a recorded skip, and none both."""
    toggles = stage.sized(30, 1000)
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", rate=stage.sized(400, 2000))
    stage.progress(host)
    for turn in range(toggles):
        at = stage.journal.count() + stage.rng.randrange(10, 60)
        body = {"state": "off", "whenOff": stage.rng.choice(("hold", "skip"))}
        reply = host.ask("/v1/flags/handler:tx", "PUT", body)
        assert reply.status == 200, reply.body
        stage.journaled(at)
        assert host.ask("/v1/flags/handler:tx", "PUT", {"state": "on"}).status == 200
        stage.fault(2)
        if turn % 5 == 0:
            stage.progress(host)
    stage.drain(host)
    found = stage.check("tx")
    stage.check("plain", "effects", 0)
    skipped = stage.database.value("select count(*) from event_deliveries where outcome = 'skip'")
    assert found.ended == skipped + stage.count_of("tx")
    assert skipped == host.metric("moontide_settled_total", handler="tx", how="skip")
    assert skipped > 0
    assert host.stop() == 0


def test_F2_handlers_are_reloaded_under_load(stage):
    """Lost, doubled, reordered: nothing. No event is run by two versions, memory stays."""
    reloads = stage.sized(30, 1000)
    host = stage.host(stage.on_outbox(), {"tx": recorder(version="0"), "plain": plain()}).start()
    stage.produce("outbox", rate=stage.sized(400, 2000))
    stage.progress(host)
    rss = None
    for turn in range(1, reloads + 1):
        host.handler("tx", recorder(version=str(turn)))
        host.handler("plain", plain() + f"-- {turn}\n")
        host.wait(lambda: stage.database.value(
            "select 1 from seen where version = %s limit 1", (str(turn),)), 20, f"version {turn}")
        stage.fault(2)
        if turn == reloads // 2:
            rss = host.rss_kib(host.process.pid)
    grown = host.rss_kib(host.process.pid) / rss
    stage.drain(host)
    stage.check_both(0)
    back = stage.database.value("""
        select count(*) from (select version::int v, lag(version::int) over (partition by key
        order by place) b from seen) t where v < b""")
    assert back == 0, f"{back} times an older version ran after a newer one"
    assert grown < (1.01 if stage.long else 1.10), f"RSS × {grown:.3f}"  # of a few MiB, in the short form
    assert host.stop() == 0


BROKEN = {
    "syntax": "return {\n  oops(}\n",
    "partial": recorder(version="9")[:150],
    "endless": "while true do end",
    "missing module": 'local x = require "nowhere.to_be_found"\n' + recorder(version="9"),
    "empty": "",
    "binary": "\27LJ\2\0",
    "wrong table": "return { subscribes = 7, handle = function() end }",
}


def test_F3_a_broken_file_never_takes_effect(stage):
    """The version that ran goes on; log, metric and API say why the file does not."""
    host = stage.host(stage.on_outbox(), {"tx": recorder(version="1"), "plain": plain()}).start()
    stage.produce("outbox", rate=stage.sized(200, 500))
    stage.progress(host)
    refused, order = 0, [""]
    for turn in range(stage.sized(2, 100)):
        last, order = order[-1], stage.rng.sample(list(BROKEN), len(BROKEN))
        if order[0] == last:  # the same reason twice running is said once
            order.append(order.pop(0))
        for name in order:
            running = host.ask("/v1/handlers/tx").json()["version"]
            host.handler("tx", BROKEN[name] + f"\n-- {turn}" if BROKEN[name] else "\n" * (turn + 1))
            refused += 1
            stage.fault()
            host.wait(lambda: host.metric("moontide_reloads_total", handler="tx",
                                          result="refused") >= refused, 20, f"{name}: refused")
            shown = host.ask("/v1/handlers/tx").json()
            assert shown["version"] == running and shown["refused"], name
            stage.progress(host)
        assert len(host.log_lines("handler refused")) == refused
    host.handler("tx", recorder(version="2"))
    host.wait(lambda: stage.database.value("select 1 from seen where version = '2' limit 1"), 20,
              "the repaired file")
    stage.drain(host)
    stage.check_both(0)
    assert host.stop() == 0


#: Below that a p99 says more about the machine than about moontide.
NOISE = 0.05


def over(took, begin, end):
    """p99 of what was written in that time."""
    return percentile([seconds for at, seconds in took if begin <= at < end], 0.99)


def live_latencies(stage, source):
    """(when, seconds) from the log to the effect. On the way from a producer to its broker moontide has no
    part, and on a busy machine that is most of it: there the broker's time counts, not the producer's."""
    if source == "outbox":
        return latencies(stage.database, stage.journal.read(), "live")
    appended = {json.loads(record.value())["id"]: record.timestamp()[1] / 1000
                for record in stage.topics.read_all(stage.topic)}
    return [(appended[id], at - appended[id]) for id, at in stage.database.query(
        "select event_id, extract(epoch from at)::float8 from seen where handler = 'live'")]


@pytest.mark.alone
@pytest.mark.parametrize("source", ["outbox", "kafka"])
def test_F4_old_events_are_replayed_while_new_ones_come(stage, source):
    """By a handler that is new: it reads all that ever was, by itself, while another follows what is written
    now. It has a rate, as one should that has much to read: without, PostgreSQL has no core left for the
    other's rows, and what is measured is the machine."""
    history, rate = stage.sized(20_000, 1_000_000), stage.sized(200, 500)
    settings = stage.on_outbox() if source == "outbox" else stage.on_kafka(
        topics=[stage.make_topic(message_timestamp_type="LogAppendTime")])
    host = stage.host(settings, {"live": recorder()}).start()
    stage.produce(source, count=history).wait(3600)
    stage.drain(host, [("live", "seen")], 3600)
    stage.produce(source, rate=rate, first_key=1000)
    stage.journaled(history + rate)
    calm = time.time()
    stage.journaled(history + 6 * rate)
    before_kib, added = host.rss_kib(host.process.pid), time.time()
    host.handler("fresh", recorder(
        more=f'rate = {{ rate = "{10 * rate}/s", burst = {rate // 2} }},'))
    stage.fault()
    most_kib = 0

    def is_level():
        nonlocal most_kib
        most_kib = max(most_kib, host.rss_kib(host.process.pid))
        return (stage.count_of("fresh") >= history
                and host.ask("/v1/handlers/fresh").json()["state"] == "running")

    host.wait(is_level, stage.sized(60, 3600) * SLOWER, "all of the history")
    level = time.time()
    stage.journaled(stage.journal.count() + rate)
    stage.drain(host, [("live", "seen"), ("fresh", "seen")])
    stage.check("live")  # none of the history came to it again
    stage.check("fresh")
    took = live_latencies(stage, source)
    calm, busy = over(took, calm, added), over(took, added, level)
    assert busy < max(2 * calm, NOISE * SLOWER), \
        f"p99 {busy * 1000:.0f} ms while it was read, before {calm * 1000:.0f} ms"
    assert most_kib < before_kib + 64 * 1024, f"{before_kib} KiB before, {most_kib} KiB at the most"
    assert host.stop() == 0


FAILS = """
return { subscribes = { "*" }, start = "earliest", retry = { max_attempts = 2, base = "10ms" },
  handle = function(event) if event.payload.n %% 5 ~= %d then error("not yet") end end }
"""


def test_F5_dead_letters_are_redriven_while_the_handler_still_fails(stage):
    """No loop: each redrive is one more round of attempts, and they are counted."""
    number, rounds = stage.sized(60, 5000), stage.sized(3, 20)
    host = stage.host(stage.on_outbox(), {"tx": recorder(), "fails": FAILS % 0}).start()
    stage.produce("outbox", count=number, keys=20).wait()
    # n of each key begins at 0: how many are not due is known from the journal.
    bad = sum(entry.n % 5 != 0 for entry in stage.journal.read().acked.values())
    wait_count(host, stage.database, bad, "event_dead_letters")

    def dead():
        return stage.database.query("select attempts from event_dead_letters where state = 'dead'")

    for turn in range(1, rounds + 1):
        before = sum(attempts for attempts, in dead())
        host.cli("dead-letters", "redrive", "--all", "--url", host.url)
        stage.fault()
        host.wait(lambda: len(dead()) == bad and sum(a for a, in dead()) > before
                  and min(a for a, in dead()) >= 2 * (turn + 1), 60, "all dead again, attempts seen")
        tries = host.metric("event_dispatch_failures_total", handler="fails")
        assert tries == bad * 2 * (turn + 1), f"{tries} tries of {bad} in round {turn}"
    assert stage.database.value("select count(*) from event_dead_letters") == bad
    # Repaired: the same letters end once, each as redriven.
    host.handler("fails", "return { subscribes = { '*' }, start = 'earliest', handle = function() end }")
    host.wait(lambda: host.log_lines("handler loaded")[2:], 20, "the repaired one")
    host.cli("dead-letters", "redrive", "--all", "--url", host.url)
    wait_count(host, stage.database, bad, "event_dead_letters", "state = 'redriven'")
    assert stage.database.value("select count(*) from event_dead_letters") == bad
    stage.drain(host, [("tx", "seen")])
    stage.check("tx")
    assert not judge(stage.database, stage.journal, "tx").doubled
    shown = json.loads(host.cli("dead-letters", "list", "--json", "--url", host.url).stdout)
    assert shown["deadLetters"] == []
    assert host.stop() == 0
