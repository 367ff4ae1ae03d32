"""The outbox: many writers, rollbacks, late commits, kills, tables of others."""

import json
import random
import signal
import threading
from collections import defaultdict

import psycopg2
import pytest
from harness import SLOWER, Database
from scenes import (assert_once_and_in_order, batch_recorder, count, make_rng, make_seen, recorder,
                    sized, wait_count)

WRITERS = 16
AGGREGATES = 200


class Writers:
    """16 connections that publish; what each committed is written down here.

    Within an aggregate numbers rise in the order of commits: a lock per
    aggregate is held over publish_event() and COMMIT, as an application holds a
    row lock of its own.
    """

    def __init__(self, database, total, seed):
        self.database, self.total, self.seed = database, total, seed
        self.locks = [threading.Lock() for _ in range(AGGREGATES)]
        self.next = defaultdict(int)
        self.committed, self.faults = {}, []
        self.guard = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True)
                        for i in range(WRITERS)]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def join(self):
        for thread in self.threads:
            thread.join(300)
            assert not thread.is_alive(), "a writer hangs"
        assert not self.faults, self.faults[:2]
        return self.committed

    def run(self, index):
        try:
            connection = self.database.connect()
            rng = random.Random(f"{self.seed}/{index}")
            done = 0
            while done < self.total // WRITERS:
                done += self.transaction(connection, rng)
            connection.close()
        except psycopg2.Error as fault:
            self.faults.append(repr(fault))

    def transaction(self, connection, rng):
        """1 to 5 events of some aggregates, one in ten rolled back, one in ten late."""
        chosen = sorted(rng.sample(range(AGGREGATES), rng.randrange(1, 4)))
        rolled_back = rng.random() < 0.1
        late = rng.random() < 0.1
        for number in chosen:
            self.locks[number].acquire()
        try:
            written = {}
            with connection.cursor() as cursor:
                for number in chosen:
                    key = f"00000000-0000-4000-8000-{number:012d}"
                    n = self.next[number]
                    cursor.execute("select publish_event('Changed', 'Thing', %s, %s)",
                                   (key, json.dumps({"n": n})))
                    written[cursor.fetchone()[0]] = (key, n)
                if late:  # others overtake in the meantime: the reader sees a gap
                    cursor.execute("select pg_sleep(%s)", (rng.random() * 0.05,))
            if rolled_back:
                connection.rollback()
                return 0
            connection.commit()
            for number in chosen:
                self.next[number] += 1
            with self.guard:
                self.committed.update(written)
            return len(written)
        finally:
            for number in chosen:
                self.locks[number].release()


def on_outbox(database, **more):
    return {"database": {"url": database.url}, **more}


def test_nothing_is_lost_doubled_or_inverted_while_writers_roll_back_and_commit_late(
        database, make_host):
    """Issue 3, done 3; requirements S2-06, S2-40, M5."""
    rng, number = make_rng("outbox"), sized(10_000, 100_000)
    make_seen(database)
    host = make_host(settings=on_outbox(database),
                     handlers={"single": recorder(), "bulk": batch_recorder()}).start()
    # Somebody holds a transaction open with a number taken, and does not commit.
    holder = database.connect()
    with holder.cursor() as cursor:
        cursor.execute("select publish_event('Changed', 'Thing', %s, %s)",
                       ("99999999-0000-4000-8000-000000000000", '{"n": 0}'))
        held = cursor.fetchone()[0]
    writers = Writers(database, number, rng.random()).start()
    for at in sorted(rng.sample(range(number // 20, number), 2)):
        wait_count(host, database, at, where="handler = 'bulk'", timeout=120 * SLOWER)
        host.kill()
        host.start()
    committed = writers.join()

    # No stall: all of it arrives although the gap of the holder stays open.
    wait_count(host, database, 2 * len(committed), timeout=120 * SLOWER)
    assert not database.query("select from seen where event_id = %s", (held,))
    host.wait(lambda: host.metric("moontide_outbox_gap_age_seconds") > 0, 15, "the gap is shown")
    host.wait(lambda: str(holder.get_backend_pid()) in json.dumps(
        host.ask("/v1/sources").json()["outbox"]["heldBy"]), 30, "the holder is named")
    holder.commit()
    committed[held] = ("99999999-0000-4000-8000-000000000000", 0)
    wait_count(host, database, 2 * len(committed))
    host.wait(lambda: host.metric("moontide_outbox_gap_age_seconds") == 0, 15, "gap closed")
    for handler in ("single", "bulk"):
        assert_once_and_in_order(database, handler, committed)
    assert host.stop() == 0


def test_a_committed_event_is_handled_soon_after_the_commit(database, make_host):
    """Adaptive polling: an idle outbox is looked at every outbox.interval."""
    make_seen(database)
    host = make_host(settings=on_outbox(database, outbox={"interval": "100ms"}),
                     handlers={"recorder": recorder()}).start()
    for n in range(5):
        database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": n})
        wait_count(host, database, n + 1, timeout=10)
    assert [row[0] for row in database.query("select n from seen order by place")] == [0, 1, 2, 3, 4]


CAMEL = """
    create table "OutboxEvent" (
        id uuid primary key default gen_random_uuid(), "eventType" text not null,
        "aggregateType" text not null, "aggregateId" text not null, payload jsonb not null,
        metadata jsonb, "occurredAt" timestamptz not null default now(),
        "createdAt" timestamptz not null default now())"""

DEBEZIUM = """
    create table outboxevent (
        id uuid primary key default gen_random_uuid(), aggregatetype varchar(255) not null,
        aggregateid varchar(255) not null, type varchar(255) not null, payload jsonb)"""


def adopted(database, make_host, table, preset, create, insert):
    """A table that was there before moontide: old rows first, then new ones."""
    make_seen(database)
    database.query(create)
    database.query(insert, ("k", json.dumps({"n": 0})))
    database.query(insert, ("k", json.dumps({"n": 1})))
    host = make_host(settings=on_outbox(database, outbox={
        "table": table, "columns": preset, "enabled": "on", "interval": "50ms"}),
        handlers={"recorder": recorder()})
    host.start()
    host.wait(lambda: "run moontide migrate" in host.log_text(), 20, "the missing columns are said")
    host.stop()
    host.cli("migrate", "adopt", table, "--preset", preset, "-c", str(host.conf))
    host.start()
    wait_count(host, database, 2)
    database.query(insert, ("k", json.dumps({"n": 2})))
    wait_count(host, database, 3)
    assert database.query("select key, n from seen order by place") == [("k", 0), ("k", 1), ("k", 2)]
    assert host.stop() == 0


def test_a_table_with_camel_case_columns_is_adopted(database, make_host):
    """Requirement C4: column preset camel."""
    adopted(database, make_host, "OutboxEvent", "camel", CAMEL, """
        insert into "OutboxEvent" ("eventType", "aggregateType", "aggregateId", payload)
        values ('OrderPaid', 'Order', %s, %s)""")


def test_a_table_of_debezium_is_adopted(database, make_host):
    """Requirement C4: column preset debezium."""
    adopted(database, make_host, "outboxevent", "debezium", DEBEZIUM, """
        insert into outboxevent (type, aggregatetype, aggregateid, payload)
        values ('OrderPaid', 'Order', %s, %s)""")


TIMES = """
return {
  subscribes = { "*" }, start = "earliest", transaction = true,
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO times VALUES ($1)", tostring(event.occurred_at))
  end,
}
"""


def test_times_are_read_whatever_their_column_and_the_datestyle(database, make_host):
    """Requirement C4: Prisma's times have no zone and are UTC."""
    database.query("create table times (at text)")
    database.query(CAMEL.replace("timestamptz", "timestamp(3)"))
    for setting in ("datestyle = German", "timezone = 'Asia/Kolkata'"):
        database.query(f"""do $do$ begin execute format(
            $$alter database %I set {setting}$$, current_database()); end $do$""")
    database.query("""insert into "OutboxEvent"
        ("eventType", "aggregateType", "aggregateId", payload, "occurredAt")
        values ('OrderPaid', 'Order', 'k', '{}', timestamp '2026-01-31 12:00:00.5')""")
    host = make_host(settings=on_outbox(database, outbox={
        "table": "OutboxEvent", "columns": "camel", "enabled": "on", "interval": "50ms"}),
        handlers={"times": TIMES})
    host.cli("migrate", "adopt", "OutboxEvent", "--preset", "camel", "-c", str(host.conf))
    host.start()
    wait_count(host, database, 1, table="times")
    assert database.query("select at from times") == [("2026-01-31T12:00:00.500000Z",)]


def test_a_reading_held_up_by_gaps_shows_its_lag(database, make_host):
    """With too many open gaps nothing new is read: that is no idle outbox."""
    host = make_host(settings=on_outbox(database, outbox={"interval": "50ms"}),
                     handlers={"recorder": recorder('"Nothing"')}).start()
    host.wait(lambda: host.ask("/v1/status").json()["sources"]["outbox"]["state"] == "reading",
              20, "reading")
    holder = database.connect()  # as long as it is open no gap closes
    holder.cursor().execute("select pg_current_xact_id()")
    database.query("""insert into domain_events
        (event_type, aggregate_type, aggregate_id, event_data, occurred_at)
        select 'T', 'A', lpad(nextval('domain_events_seq')::text, 32, '0')::uuid, '{}', now()
        from generate_series(1, 25000)""")
    host.wait(lambda: host.ask("/v1/status").json()["sources"]["outbox"]["missing"] > 20000,
              60, "too many gaps")
    host.wait(lambda: host.metric("moontide_source_lag", source="outbox") > 0, 10, "the lag")
    holder.rollback()
    host.wait(lambda: host.ask("/v1/status").json()["sources"]["outbox"]["last"] == 50000, 60, "all")
    host.wait(lambda: host.metric("moontide_source_lag", source="outbox") == 0, 10, "no lag")


def test_a_table_half_adopted_is_waited_for(database, make_host):
    """Design 13.3: old rows have no number yet, and lie below those that have."""
    make_seen(database)
    database.query(CAMEL)
    insert = """insert into "OutboxEvent" ("eventType", "aggregateType", "aggregateId", payload)
        values ('OrderPaid', 'Order', 'k', %s)"""
    for n in range(2):
        database.query(insert, (json.dumps({"n": n}),))
    database.query("""create sequence numbers start 3;
        alter table "OutboxEvent" add column xid xid8, add column seq bigint;
        alter table "OutboxEvent" alter column xid set default pg_current_xact_id(),
            alter column seq set default nextval('numbers')""")
    database.query(insert, (json.dumps({"n": 2}),))
    host = make_host(settings=on_outbox(database, outbox={
        "table": "OutboxEvent", "columns": "camel", "enabled": "on", "interval": "50ms"}),
        handlers={"recorder": recorder()}).start()
    host.wait(lambda: "NOT NULL" in host.log_text(), 20, "the reason is said")
    database.query("""update "OutboxEvent" set xid = pg_current_xact_id(),
        seq = 1 + (payload ->> 'n')::int where seq is null""")
    database.query("""alter table "OutboxEvent" alter column seq set not null""")
    wait_count(host, database, 3)
    assert [row[0] for row in database.query("select n from seen order by place")] == [0, 1, 2]


def test_a_sequence_with_a_cache_is_refused_because_it_would_lose_events(database, make_host):
    """Design 13.3: the cursor's conditions are checked, not assumed."""
    database.query("alter sequence domain_events_seq cache 20")
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"recorder": recorder()}).start()
    host.wait(lambda: "cache 1" in host.log_text(), 20, "the reason is said")
    database.query("alter sequence domain_events_seq cache 1")
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 0})
    wait_count(host, database, 1)


def test_the_last_positions_are_tried_again_while_a_drain_has_time(database, make_host):
    """A store that refuses for a moment: what is not saved would be delivered twice."""
    make_seen(database)
    host = make_host(settings=on_outbox(database, positions={"interval": "60s"}),
                     handlers={"recorder": recorder()}).start()
    for n in range(20):
        database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": n})
    wait_count(host, database, 20)
    database.query("alter table event_handler_positions rename to away")
    host.process.send_signal(signal.SIGTERM)
    host.wait(lambda: "positions not saved" in host.log_text(), 20, "the failure is said")
    database.query("alter table away rename to event_handler_positions")
    assert host.process.wait(20) == 0
    ends = database.query("select distinct seq from event_handler_positions")
    assert ends == [(database.value("select max(seq) + 1 from domain_events"),)]


def test_the_latest_is_asked_for_again_when_the_first_question_fails(database, make_host):
    """start = latest: a lost answer delays the start, it does not prevent it."""
    make_seen(database)
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 0})

    def locked(table):
        connection = database.connect()
        connection.cursor().execute(f"lock table {table} in access exclusive mode")
        return connection

    def waiting(what, then="pid"):
        return database.query(f"""select {then} from pg_stat_activity where wait_event_type = 'Lock'
            and datname = current_database() and query like %s""", (f"%{what}%",))

    positions = locked("event_handler_positions")
    host = make_host(settings=on_outbox(database, outbox={"start": "latest"}),
                     handlers={"recorder": recorder(more='start = "now",')}).start()
    host.wait(lambda: waiting("event_handler_positions"), 20, "the table is checked")
    events = locked("domain_events")
    positions.rollback()
    host.wait(lambda: waiting("max(seq)", "pg_terminate_backend(pid)"), 20, "the end is asked for")
    events.rollback()
    host.wait(lambda: host.ask("/v1/status").json()["sources"]["outbox"]["last"] == 1, 20, "started")
    database.publish("Changed", "Thing", "00000000-0000-4000-8000-000000000001", {"n": 1})
    wait_count(host, database, 1)
    assert database.query("select n from seen") == [(1,)]
    assert host.stop() == 0


def test_postgresql_restarted_meanwhile_loses_and_doubles_nothing(own_postgres, make_host):
    """The database goes and comes back while events are handled."""
    own_postgres.query("create database shop")
    url = own_postgres.url("shop")
    host = make_host(settings={"database": {"url": url}}, handlers={"recorder": recorder()})
    host.cli("migrate", "up", "-c", str(host.conf))

    class Shop:
        def query(self, sql, args=None):
            return own_postgres.query(sql, args, "shop")

        def value(self, sql, args=None):
            return self.query(sql, args)[0][0]

    shop = Shop()
    make_seen(shop)
    host.start()
    publish = """select publish_event('Changed', 'Thing', '00000000-0000-4000-8000-000000000001',
                 jsonb_build_object('n', n)) from generate_series(%s::int, %s::int) n"""
    shop.query(publish, (0, 1999))
    wait_count(host, shop, 100)
    own_postgres.stop()
    host.wait(lambda: host.metric("moontide_database_connected", name="main") == 0, 20, "missed")
    assert host.ask("/readyz").status == 503
    own_postgres.start()
    shop.query(publish, (2000, 2099))
    wait_count(host, shop, 2100, timeout=60)
    assert [row[0] for row in shop.query("select n from seen order by place")] == list(range(2100))
    assert count(shop, "event_dead_letters") == 0
    assert host.stop() == 0


AGGREGATE = "00000000-0000-4000-8000-000000000001"


def outbox_of(host):
    return host.ask("/v1/status").json()["sources"]["outbox"]


@pytest.mark.parametrize("how", ["notify", "wal"])
def test_a_commit_wakes_the_reading(own_postgres, make_host, how):
    """Issue 4, latency: outbox.wake; its end is noticed, and nothing depends on it."""
    own_postgres.query("create database woken")
    database = Database(own_postgres, "woken")
    host = make_host(settings={"database": {"url": database.url},
                               "outbox": {"wake": how, "interval": "1s"}},
                     handlers={"recorder": recorder()})
    host.cli("migrate", "up", "-c", str(host.conf))
    database.query("select moontide_outbox_wake(%s)", (how,))
    make_seen(database)
    host.start()

    def publish_until_heard(n):
        """The slot may still be in the making: what comes before that is polled."""
        before = outbox_of(host)["wakeUps"]
        while outbox_of(host)["wakeUps"] < before + 3:
            database.publish("T", "A", AGGREGATE, {"n": n})
            n += 1
            wait_count(host, database, n)
        return n

    n = publish_until_heard(0)
    ended = database.query("select pg_terminate_backend(pid) from pg_stat_activity"
                           " where application_name like 'moontide%%' and pid <> pg_backend_pid()")
    assert ended
    n = publish_until_heard(n)
    assert count(database) == n
    database.query("select moontide_outbox_wake('poll')")
    assert not database.value("select count(*) from pg_publication")
    database.publish("T", "A", AGGREGATE, {"n": n})
    wait_count(host, database, n + 1)
