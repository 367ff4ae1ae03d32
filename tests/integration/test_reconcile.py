"""moontide reconcile: every event of the store stands where it should (M14)."""

import json

from harness import envelope, merge
from scenes import QUICK_GROUP

KEY = "00000000-0000-4000-8000-000000000001"

#: One table for all: %s is `transaction = true,` or nothing.
HANDLER = """
return {
  subscribes = { "Done", "Bad", "Odd" }, start = "earliest", %s
  retry = { max_attempts = 1 },
  handle = function(event, ctx)
    if event.type == "Bad" then error("never") end
    if event.type == "Odd" then return ctx.skip("odd") end
  end,
}
"""


def settings(database, **more):
    return merge({"database": {"url": database.url}}, more)


def reconcile(host, *args):
    """(exit code, sums by handler, faults)"""
    done = host.cli("reconcile", "--json", "-c", str(host.conf), *args, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode in (0, 1), done.stderr
    return (done.returncode, {line["handler"]: line for line in lines if "proof" in line},
            [line for line in lines if "why" in line])


def test_what_does_not_fit_is_listed_and_nothing_else(database, make_host):
    host = make_host(settings=settings(database), handlers={
        "exact": HANDLER % "transaction = true,", "plain": HANDLER % ""})
    hole = database.value("select nextval('domain_events_seq')")  # that nobody uses
    ids = [database.publish("Done", "Thing", KEY, {"n": n}) for n in range(2100)]  # two pages
    database.publish("Bad", "Thing", KEY, {})
    database.publish("Odd", "Thing", KEY, {})
    database.publish("Other", "Thing", KEY, {})
    host.start()
    host.wait(lambda: database.value("select count(*) from event_handler_positions"
                                     " where seq > (select max(seq) from domain_events)") == 2,
              60, "all is done and saved")
    code, sums, faults = reconcile(host)  # beside the running host
    assert (code, faults) == (0, [])
    exact, plain = sums["exact"], sums["plain"]
    assert exact["proof"] == "inbox" and plain["proof"] == "position"
    assert {k: exact[k] for k in ("accepted", "done", "dead", "skipped", "parked", "pending",
                                  "byPosition")} == \
        {"accepted": 2102, "done": 2100, "dead": 1, "skipped": 1, "parked": 0, "pending": 0,
         "byPosition": 0}
    assert (plain["accepted"], plain["byPosition"], plain["dead"]) == (2102, 2100, 1)
    assert any("position only" in note for note in plain["notes"])
    # The same by the counters of the host.
    for name in sums:
        assert host.metric("moontide_accepted_total", handler=name) == 2102
        assert host.metric("moontide_settled_total", handler=name) == 2102
        assert host.metric("moontide_pending", handler=name) == 0
    assert host.stop() == 0

    database.publish("Done", "Thing", KEY, {"n": "not yet"})
    code, sums, _ = reconcile(host, "exact")
    assert code == 0 and list(sums) == ["exact"] and sums["exact"]["pending"] == 1

    # Broken on purpose: an effect that went missing, and a row that came too late.
    database.query("delete from event_inbox where event_id = %s", (ids[7],))
    database.query("insert into domain_events (aggregate_id, aggregate_type, event_type,"
                   " event_data, occurred_at, seq) values (%s, 'Thing', 'Done', '{}', now(), %s)",
                   (KEY, hole))
    late = database.value("select id::text from domain_events where seq = %s", (hole,))
    code, sums, faults = reconcile(host)
    assert code == 1
    assert [(f["handler"], f["event"]) for f in faults] == [("exact", late), ("exact", ids[7])]
    assert all("not done" in f["why"] for f in faults) and sums["exact"]["faults"] == 2
    text = host.cli("reconcile", "exact", "-c", str(host.conf), check=False)
    assert text.returncode == 1 and ids[7] in text.stdout


def test_two_ends_of_one_event_and_letters_of_none_do_not_fit(database, make_host):
    host = make_host(settings=settings(database), handlers={"exact": HANDLER % "transaction = true,"})
    bad = database.publish("Bad", "Thing", KEY, {})
    host.start()
    host.wait(lambda: database.value("select count(*) from event_dead_letters") == 1, 30, "dead")
    assert host.stop() == 0
    assert reconcile(host)[0] == 0
    database.query("insert into event_inbox (handler, event_id) values ('exact', %s)", (bad,))
    database.query("insert into event_dead_letters (handler, event_id, source, partition, place,"
                   " class) values ('exact', 'gone', 'outbox', '0', 999999, 'bug')")
    code, _, faults = reconcile(host)
    assert code == 1
    assert [f["event"] for f in faults] == [bad, "gone"]
    assert "dead letter all the same" in faults[0]["why"] and "not in the store" in faults[1]["why"]


def test_a_handler_without_a_file_cannot_be_checked(database, make_host):
    host = make_host(settings=settings(database), handlers={"exact": HANDLER % ""})
    database.query("insert into event_handler_positions (handler_name, source, partition, seq)"
                   " values ('nobody', 'outbox', '0', 1)")
    done = host.cli("reconcile", "-c", str(host.conf), check=False)
    assert done.returncode == 1 and "nobody: cannot be checked" in done.stderr


def test_events_of_topics_are_held_against_the_tables(database, topics, make_host):
    """M14 for Kafka: read without a group, over pages and partitions; records that nobody subscribes to or
    can decode belong to no handler."""
    topic, number = topics.create("events", 3), 4500
    kinds = {7: "Bad", 8: "Odd", 9: "Other"}
    topics.produce(topic, ((f"k{n % 50}", envelope(n, kinds.get(n, "Done"), id=f"e{n}"), None)
                           for n in range(number)))
    topics.produce(topic, [("k1", b"no event", None)])
    host = make_host(settings=settings(
        database, outbox={"enabled": "off"}, rdkafka=dict(QUICK_GROUP),
        kafka={"brokers": topics.bootstrap, "topics": [topic], "group_id": topics.prefix}),
        handlers={"exact": HANDLER % "transaction = true,", "plain": HANDLER % ""})
    host.start()
    host.wait(lambda: database.value("select coalesce(sum(seq), 0) from event_handler_positions")
              == 2 * (number + 1), 90, "all is done and saved")
    assert host.stop() == 0
    groups = {group.id for group in topics.admin.list_groups()}
    code, sums, faults = reconcile(host)
    assert (code, faults) == (0, [])
    assert {k: sums["exact"][k] for k in ("accepted", "done", "dead", "skipped", "parked", "pending",
                                          "byPosition", "beforeStart", "topicPartitions")} == \
        {"accepted": number - 1, "done": number - 3, "dead": 1, "skipped": 1, "parked": 0,
         "pending": 0, "byPosition": 0, "beforeStart": 0, "topicPartitions": 3}
    plain = sums["plain"]
    assert (plain["accepted"], plain["byPosition"], plain["dead"]) == (number - 1, number - 3, 1)
    # It joins no group.
    assert {group.id for group in topics.admin.list_groups()} <= groups

    # What is not read yet, what was given up, and what went missing.
    topics.produce(topic, [("k1", envelope(9000, "Done", id="new"), None)])
    database.query("delete from event_inbox where handler = 'exact' and event_id in ('e1000', 'e1001')")
    where = {f["event"]: f for f in reconcile(host, "exact")[2]}
    assert set(where) == {"e1000", "e1001"} and all("not done" in f["why"] for f in where.values())
    gone = where["e1001"]
    database.query("insert into event_given_up (handler, source, partition, source_id, first_place,"
                   " last_place, reason, who) select handler_name, source, partition, source_id, %s, %s,"
                   " 'a test', 'me' from event_handler_positions where handler_name = 'exact'"
                   " and partition = %s", (gone["place"], gone["place"], gone["partition"]))
    code, sums, faults = reconcile(host, "exact")
    assert code == 1 and [f["event"] for f in faults] == ["e1000"]
    assert (sums["exact"]["pending"], sums["exact"]["givenUp"]) == (1, 1)
    text = host.cli("reconcile", "exact", "-c", str(host.conf), check=False).stdout
    assert f"at {where['e1000']['partition']} {where['e1000']['place']} " in text


def test_topics_that_cannot_be_read_are_no_reconciliation(database, make_host):
    host = make_host(settings=settings(database), handlers={"exact": HANDLER % ""})
    database.query("insert into event_handler_positions (handler_name, source, partition, source_id, seq)"
                   " values ('exact', 'kafka', 'orders/0', 'a/b', 1)")
    done = host.cli("reconcile", "-c", str(host.conf), check=False)
    assert done.returncode == 1 and "names no broker" in done.stderr
