"""Rows P: PostgreSQL that restarts, fails over, is cut off, held up, filled and pooled."""

import json
import os
import signal
import threading

import pytest
from harness import SLOWER, Database
from oracle import latencies
from servers import Bouncer, wait_for
from stage import plain
from test_a_kills import allowed, narrow

#: Two statements a transaction: neither is ever there without the other.
BOTH_HALVES = """
return {
  subscribes = { "*" }, start = "earliest", transaction = true,
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO halves (event_id) VALUES ($1)", event.id)
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n) VALUES ($1, $2, $3, $4)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""

KEY = "00000000-0000-4000-8000-{:012d}"


def assert_whole(database):
    halves = database.value("""
        select count(*) from (select event_id from halves) h
        full join (select event_id from seen where handler = 'tx') s using (event_id)
        where h.event_id is null or s.event_id is null""")
    assert halves == 0, f"{halves} half effects"


def make_halves(stage):
    stage.database.query("create table halves (event_id text)")
    return {"tx": BOTH_HALVES, "plain": plain()}


def test_P1_the_database_is_restarted(stage):
    server = stage.own_database()
    host = stage.host(stage.on_outbox(**narrow(workers={"count": 2})), make_halves(stage)).start()
    stage.produce("outbox", rate=stage.sized(300, 1000))
    restarts = stage.sized(4, 50)
    for turn in range(restarts):
        stage.progress(host, limit=5, what="reconnected and at work")
        at = stage.count() + stage.rng.randrange(100, 300)
        host.wait(lambda: stage.count() >= at, 60, "work to interrupt")
        server.stop(signal.SIGQUIT if turn % 2 else signal.SIGINT)
        stage.fault()
        server.start()
    stage.progress(host, limit=5, what="reconnected and at work")
    stage.drain(host)
    stage.check_both(allowed(stage, restarts))
    assert_whole(stage.database)
    assert host.stop() == 0


def failover(stage, synchronous):
    """The primary dies, the standby is promoted, the address leads to it."""
    primary = stage.own_database()
    standby = primary.standby(stage.own_folder() / "standby").start()
    stage.servers.append(standby)
    if synchronous:
        primary.query("alter system set synchronous_standby_names = '*'")
        primary.query("select pg_reload_conf()")
        wait_for(lambda: primary.query("select 1 from pg_stat_replication where sync_state = 'sync'"),
                 20, "a synchronous standby")
    proxy = stage.proxy(primary.port)
    url = stage.database.url.replace(str(primary.port), str(proxy.port))
    host = stage.host(stage.on_outbox(database={"url": url})).start()
    stage.produce("outbox", to=url, rate=stage.sized(300, 1000), writers=4)
    stage.progress(host)
    stage.journaled(stage.journal.count() + stage.sized(500, 20_000))
    return primary, standby, proxy, host


def promote(stage, primary, standby, proxy):
    primary.kill()
    stage.fault()
    standby.promote()
    proxy.target = standby.port
    proxy.reset()
    stage.database = Database(standby, "shop")


def test_P2_failover_to_a_synchronous_standby(stage):
    primary, standby, proxy, host = failover(stage, synchronous=True)
    promote(stage, primary, standby, proxy)
    stage.progress(host, limit=10, what="at work with the new primary")
    stage.journaled(stage.journal.count() + 300)
    stage.drain(host)
    stage.check_both(allowed(stage, 1))
    assert host.stop() == 0


def outbox_trouble(host):
    return host.ask("/v1/sources").json()["outbox"]["trouble"] or ""


def test_P2_an_asynchronous_failover_is_accounted_for(stage):
    """What was read and is lost stops the outbox, loudly and over restarts, until an operator says to
    go on. No effect of it is in the new primary, and no new event with an old number is passed over."""
    primary, standby, proxy, host = failover(stage, synchronous=False)
    stage.drain(host)
    wait_for(lambda: standby.query("select pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()"
                                   " and pg_last_wal_replay_lsn() >= %s::pg_lsn",
                                   primary.query("select pg_current_wal_lsn()")[0])[0][0],
             20, "the standby level")
    # What is acknowledged from here on is not on the standby, and done all the same.
    standby.query("alter system set primary_conninfo = ''")
    standby.query("select pg_reload_conf()")
    wait_for(lambda: not primary.query("select 1 from pg_stat_replication"), 20, "no standby")
    ghosts = [stage.database.publish("Happened", "Thing", KEY.format(n % 5), {"n": 10**6 + n})
              for n in range(stage.sized(50, 5000))]
    host.wait(lambda: stage.count_of("tx") == stage.journal.count() + len(ghosts), 60, "ghosts done")
    promote(stage, primary, standby, proxy)

    with stage.recovery(20, "it says so"):
        host.wait(lambda: "back in time" in outbox_trouble(host), 30, "it says so")
    new = [stage.database.publish("Happened", "Thing", KEY.format(900_000), {"n": n})
           for n in range(100)]  # some of them with the ghosts' numbers
    lost = [line["event"] for line in host.log_lines("event lost by the database")]
    assert lost == ghosts[-len(lost):] and len(lost) >= min(len(ghosts), 50)
    host.wait(lambda: any("back in time" in r["why"] for r in host.ask("/readyz").json()["reasons"]),
              20, "not ready")
    assert host.stop() == 0
    host.start()  # is not the operator's word
    host.wait(lambda: "back in time" in outbox_trouble(host), 30, "it says so again")
    assert host.ask("/readyz").status == 503
    assert not stage.database.query("select * from seen where event_id = any(%s)", (new,))

    assert "back in time" in host.cli("sources", "--url", host.url).stdout
    move = ("sources", "move", "outbox", "--url", host.url, "--reason", "the primary's disk died")
    assert "earliest or latest" in host.cli(*move, "--to", "7", check=False).stderr
    assert "goes on at" in host.cli(*move, "--to", "earliest").stdout
    for n, id in enumerate(new):
        stage.journal.add(id, KEY.format(900_000), n)
    stage.drain(host)
    stage.check_both(allowed(stage, 1))
    assert not stage.database.value("select count(*) from seen where event_id = any(%s)", (ghosts,))
    moves = host.ask("/v1/sources/moves").json()["givenUp"]
    assert len(moves) == 1 and moves[0]["reason"] == "the primary's disk died"
    assert "has no trouble" in host.cli(*move, "--to", "earliest", check=False).stderr
    assert host.ask("/readyz").status == 200
    assert host.cli("reconcile", "-c", str(host.conf)).returncode == 0
    assert host.stop() == 0


def test_P3_the_connection_is_cut_exactly_at_commit(stage):
    """Unsent, sent, or committed with the answer lost: the inbox knows."""
    proxy = stage.proxy(stage.database.server.port, commits=True)
    url = stage.database.url.replace(str(stage.database.server.port), str(proxy.port))
    host = stage.host(stage.on_outbox(database={"url": url}, workers={"count": 2}),
                      make_halves(stage)).start()
    wanted = stage.sized(60, 1000)
    stage.produce("outbox", rate=stage.sized(150, 400))
    stage.progress(host)
    proxy.commit_chance = 0.1
    host.wait(lambda: sum(proxy.cuts.values()) >= wanted, 600, "commits to cut")
    proxy.heal()
    stage.fault(sum(proxy.cuts.values()))
    assert all(proxy.cuts.values()), proxy.cuts
    stage.progress(host)
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert_whole(stage.database)
    # What was committed and not answered came again, and the inbox knew it.
    assert host.metric("moontide_duplicates_total", handler="tx") > 0
    assert host.stop() == 0


def in_transaction(database, name=None):
    """A connection whose transaction has an event's number and does not end."""
    connection = database.connect()
    cursor = connection.cursor()
    cursor.execute("select publish_event('Happened', 'Thing', %s, %s)",
                   (KEY.format(999_999), json.dumps({"n": 0})))
    id = cursor.fetchone()[0]
    if name:
        cursor.execute(f"prepare transaction '{name}'")
    return connection, id


@pytest.mark.parametrize("kind", ["idle", "busy", "prepared"])
def test_P4_a_transaction_does_not_end(stage, kind):
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", rate=stage.sized(200, 500))
    stage.progress(host)
    connection, id = in_transaction(stage.database, "forgotten" if kind == "prepared" else None)
    stage.fault()
    busy = threading.Thread(target=lambda: connection.cursor().execute("select pg_sleep(600)"))
    if kind == "busy":
        busy.start()
    before, mark = stage.count(), stage.journal.count()
    # The alarm: who holds it, and since when.
    with stage.recovery(60, "the holder is named"):
        host.wait(lambda: (host.ask("/v1/sources").json()["outbox"] or {}).get("heldBy"), 60,
                  "the holder is named")
    held = host.ask("/v1/sources").json()["outbox"]["heldBy"]
    assert ("forgotten" in held["query"] if kind == "prepared"
            else held["pid"] == connection.info.backend_pid), held
    stage.hold(stage.sized(0, 600))
    stage.journaled(mark + 500)
    host.wait(lambda: stage.count() >= before + 400, 30, "delivery goes on")
    if kind == "busy":
        stage.database.query("select pg_cancel_backend(%s)", (connection.info.backend_pid,))
        busy.join(10)
        connection.rollback()
    elif kind == "prepared":
        stage.database.server.connect(stage.database.name).cursor().execute(
            "commit prepared 'forgotten'")
    else:
        connection.commit()
    if kind != "busy":
        stage.journal.add(id, KEY.format(999_999), 0)
    stage.drain(host)
    stage.check_both(0)
    assert host.stop() == 0


def test_P5_commits_come_out_of_the_order_of_their_numbers(stage):
    """Sixteen writers, sleeps, rollbacks; and kills, whose gaps are stored."""
    number = stage.sized(6000, 100_000)
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", count=number, writers=16, rollbacks=0.05, late=0.1, keys=300)
    kills = stage.sized(2, 20)
    for _ in range(kills):
        stage.progress(host)
        at = stage.count() + stage.rng.randrange(200, 1000)
        host.wait(lambda: stage.count() >= at, 60, "work to interrupt")
        host.kill()
        stage.fault()
        host.start()
    stage.drain(host, timeout=120)
    stage.check_both(stage.journal.count())
    assert stage.journal.count() >= number
    assert host.stop() == 0


def drop_this_month(database):
    month = database.value("select to_char(now() at time zone 'utc', 'YYYY_MM')")
    database.query(f"alter table domain_events detach partition domain_events_{month}")


def test_P6_the_partition_of_this_month_is_missing(stage):
    """The default partition takes it: no producer fails and nothing is passed over."""
    drop_this_month(stage.database)
    stage.fault()
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", rate=300, count=stage.sized(600, 20_000)).wait()
    stage.drain(host)
    stage.check_both(0)
    assert stage.database.value("select count(*) from domain_events_default") >= 600
    assert host.stop() == 0


def test_P6_a_default_partition_that_fills_is_an_alarm(stage):
    drop_this_month(stage.database)
    stage.fault()
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", count=100).wait()
    stage.drain(host)
    with stage.recovery(30, "the alarm"):
        host.wait(lambda: "default partition domain_events_default holds" in host.log_text(), 30,
                  "the alarm")
    assert any("default partition" in warning["why"]
               for warning in host.ask("/v1/status").json()["warnings"])
    assert host.metric("moontide_store_default_rows") >= 100
    stage.check_both(0)
    assert host.stop() == 0


def test_P7_the_slot_that_wakes_the_reading_is_invalidated(stage):
    """It is only a hint: the table is read on, and another slot is made."""
    server = stage.own_database(wal_level="logical", max_slot_wal_keep_size="1MB")
    database = stage.database
    database.query("select moontide_outbox_wake('wal')")
    proxy = stage.proxy(server.port)
    url = database.url.replace(str(server.port), str(proxy.port))
    host = stage.host(stage.on_outbox(database={"url": url},
                                      outbox={"wake": "wal", "interval": "1s"})).start()
    stage.produce("outbox", rate=stage.sized(100, 500))
    stage.progress(host)
    slot = wait_for(lambda: database.query("select slot_name from pg_replication_slots"), 30,
                    "the slot")[0][0]
    for _ in range(stage.sized(1, 10)):
        proxy.black_hole()  # so that the slot's reader does not get on
        stage.fault()
        database.query("create table if not exists filler (t text)")

        def is_lost():
            server.query("insert into filler select repeat(md5(random()::text), 100)"
                         " from generate_series(1, 8000)", database="shop")
            server.query("select pg_switch_wal()")
            server.query("checkpoint")
            return not server.query("select 1 from pg_replication_slots where slot_name = %s"
                                    " and wal_status <> 'lost'", (slot,))
        wait_for(is_lost, 60, "the slot lost")
        proxy.heal()
        stage.progress(host, limit=10)
        slot = wait_for(lambda: database.query(
            "select slot_name from pg_replication_slots where wal_status <> 'lost'"), 30,
            "another slot")[0][0]
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


def storm(database, channel, over):
    """Five thousand notifications a second that mean nothing."""
    connection = database.connect(autocommit=True)
    while not over.wait(0.1):
        connection.cursor().execute("select pg_notify(%s, i::text) from generate_series(1, 500) i",
                                    (channel,))
    connection.close()


def listeners(database):
    return [pid for pid, in database.query(
        "select pid from pg_stat_activity where datname = current_database()"
        " and application_name like 'moontide%%' and query like '%%LISTEN moontide_outbox'")]


def test_P8_notifications_storm_stall_and_get_lost(stage):
    database, interval = stage.database, 1.0
    database.query("select moontide_outbox_wake('notify')")
    host = stage.host(stage.on_outbox(outbox={"wake": "notify", "interval": f"{interval}s"})).start()
    stage.produce("outbox", rate=stage.sized(100, 5000), writers=4)
    stage.progress(host)
    over = threading.Event()
    noise = threading.Thread(target=storm, args=(database, "moontide_outbox", over))
    noise.start()
    try:
        stage.fault()
        stage.journaled(stage.journal.count() + stage.sized(300, 20_000))
        pids = wait_for(lambda: listeners(database), 20, "who listens")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        stage.fault()
        stage.hold(stage.sized(4, 300))
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for pid in listeners(database):
            database.query("select pg_terminate_backend(%s)", (pid,))
        stage.fault()
        stage.journaled(stage.journal.count() + 300)
    finally:
        over.set()
        noise.join(10)
    stage.drain(host)
    stage.check_both(0)
    slowest = max(took for _, took in latencies(database, stage.journal, "tx"))
    stage.figures["recovery"] = slowest
    assert slowest < (interval + 1) * SLOWER, f"{slowest:.1f} s"
    assert host.stop() == 0


OPPOSITE = """
return {
  subscribes = { "*" }, start = "earliest", transaction = true, retry = { max_attempts = 1 },
  handle = function(event, ctx)
    local first = 2 * (event.payload.n %% 10)
    ctx.tx:exec("SELECT clash()")
    ctx.tx:exec("UPDATE accounts SET sum = sum + 1 WHERE id = $1", first + %(first)d)
    ctx.tx:exec("UPDATE accounts SET sum = sum + 1 WHERE id = $1", first + %(second)d)
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n) VALUES ($1, $2, $3, $4)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""


def test_P9_deadlocks_and_serialization_failures_are_nobodys_fault(stage):
    stage.database.query("""
        create table accounts (id int primary key, sum bigint default 0);
        insert into accounts select generate_series(1, 20);
        create sequence clashes;
        create function clash() returns void language plpgsql as $$ begin
            if nextval('clashes') %% 7 = 0 then
                raise exception 'could not serialize' using errcode = '40001';
            end if;
        end $$;
        do $do$ begin execute format('alter database %%I set deadlock_timeout = 20',
                                     current_database()); end $do$""", ())
    number = stage.sized(200, 5000)
    handlers = {"tx": OPPOSITE % {"first": 1, "second": 2},
                "back": OPPOSITE % {"first": 2, "second": 1}}
    host = stage.host(stage.on_outbox(workers={"count": 2}), handlers).start()
    stage.produce("outbox", count=number)
    stage.drain(host, [("tx", "seen"), ("back", "seen")], timeout=stage.sized(30, 300))
    letters = stage.database.query("select code, count(*) from event_dead_letters group by 1")
    stage.fault(stage.database.value("select deadlocks::int from pg_stat_database"
                                     " where datname = current_database()"))
    assert not letters, letters
    stage.check("tx")
    stage.check("back")
    assert stage.database.value("select sum(sum) from accounts") == 4 * stage.journal.count()


def test_P10_through_a_pooler_in_transaction_mode(stage):
    bouncer = Bouncer(stage.own_folder(), stage.database.server)
    stage.servers.append(bouncer)
    settings = stage.on_outbox(**narrow(database={"url": bouncer.url(stage.database),
                                                  "prepare": False}, workers={"count": 2}))
    host = stage.host(settings, make_halves(stage)).start()
    stage.produce("outbox", rate=stage.sized(300, 1000))
    kills = stage.sized(3, 50)
    for _ in range(kills):
        stage.progress(host)
        at = stage.count() + stage.rng.randrange(50, 200)
        host.wait(lambda: stage.count() >= at, 60, "work to interrupt")
        if stage.rng.random() < 0.5:
            host.kill()
            host.start()
        else:
            bouncer.renew()
        stage.fault()
    stage.drain(host)
    stage.check_both(allowed(stage, kills))
    assert_whole(stage.database)
    assert host.stop() == 0
