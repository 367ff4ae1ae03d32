"""Several hosts on one outbox: leases of shards, take-overs, fencing."""

import contextlib
import json
import os
import signal
import time

import pytest
from harness import SLOWER, Database
from scenes import (assert_once_and_in_order, batch_recorder, count, make_rng, make_seen, recorder,
                    sized, wait_count)
from servers import wait_for
from test_outbox import Writers

SHARDS = 64

#: At least once by itself: what is drained in time is not doubled all the same.
PLAIN = """
local db = require "moontide.db"
return {
  subscribes = { "*" }, start = "earliest", allow = { db = true },
  handle = function(event, ctx)
    db.exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, '')",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""


def on_outbox(database, lease="6s", **more):
    return {"database": {"url": database.url, "lease": lease}, **more}


def shards(host):
    return int(host.metric("moontide_outbox_shards"))


def wait_shares(*hosts, shares, timeout=20):
    """Until the hosts have so many shards each, in any order."""
    wait_for(lambda: sorted(shards(host) for host in hosts) == sorted(shares),
             timeout * SLOWER, f"shares {shares}")


def keys_of(database, owner):
    """An aggregate id for each shard of that owner."""
    rows = database.query("""
        select distinct on (shard) shard, key from (
            select '00000000-0000-4000-8000-' || lpad(i::text, 12, '7') as key
            from generate_series(1, 2000) i) k
        join event_shards s on s.shard = moontide_shard(key)
        where s.owner = %s order by shard""", (owner,))
    return {shard: key for shard, key in rows}


def node(host):
    return host.ask("/v1/status").json()["node"]


@contextlib.contextmanager
def frozen(host):
    """The host process alone; its workers notice by themselves."""
    host.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        host.process.send_signal(signal.SIGCONT)


def test_every_shard_has_its_events_whatever_the_ids_are(database):
    """Migration 0009: the function and the table agree, NULL counts as ''."""
    assert database.value("select count(*) from event_shards") == SHARDS
    assert database.query("""select min(moontide_shard(i::text)), max(moontide_shard(i::text)),
        count(distinct moontide_shard(i::text)) from generate_series(1, 10000) i""") == [(0, 63, 64)]
    assert database.value("select moontide_shard(null) = moontide_shard('')")


def test_a_dead_hosts_shards_run_elsewhere_within_ten_seconds(database, make_host):
    """Issue 5: taken over within 10 s of a death; nothing lost, doubled or inverted, with gaps
    open meanwhile that are filled, or not, only after the take-over."""
    rng, number = make_rng("shards.kill"), sized(6_000, 60_000)
    make_seen(database)
    hosts = [make_host(settings=on_outbox(database),
                       handlers={"single": recorder(), "bulk": batch_recorder()})
             for _ in range(2)]
    for host in hosts:
        host.start()
    wait_shares(*hosts, shares=[32, 32])
    dead, alive = rng.sample(hosts, 2)
    probes = keys_of(database, node(dead))
    assert len(probes) == 32

    # Numbers that are in the dead host's stored gaps: one comes later, one never.
    held = {}
    open_ends = [database.connect(), database.connect()]
    for connection in open_ends:
        with connection.cursor() as cursor:
            cursor.execute("set moontide.publish_lock = 'off'")
            for key in probes.values():
                cursor.execute("select publish_event('Changed', 'Thing', %s, %s)",
                               (key, json.dumps({"n": 0})))
                if connection is open_ends[0]:
                    held[cursor.fetchone()[0]] = (key, 0)
    writers = Writers(database, number, rng.random()).start()
    wait_count(alive, database, number // 3, timeout=120 * SLOWER)
    dead.kill()
    death = time.monotonic()
    written = {database.publish("Changed", "Thing", key, {"n": 1}): (key, 1)
               for key in probes.values()}
    wait_count(alive, database, len(written), where="n = 1 and event_id = any(array%s)"
               % sorted(written), timeout=60 * SLOWER)
    took = time.monotonic() - death
    print(f"running elsewhere after {took:.1f} s")
    assert took < 10 * SLOWER
    assert shards(alive) == SHARDS
    committed = writers.join()
    wait_count(alive, database, 2 * (len(committed) + len(written)), timeout=120 * SLOWER)
    open_ends[0].commit()
    open_ends[1].rollback()
    late = len(held)
    wait_count(alive, database, 2 * (len(committed) + len(written) + late), timeout=60)
    for handler in ("single", "bulk"):
        rows = database.query("select event_id, key, n from seen where handler = %s order by place",
                              (handler,))
        assert len(rows) == len({row[0] for row in rows}), "doubled"
        assert {row[0] for row in rows} == set(committed) | set(written) | set(held)
    database.query("delete from seen where event_id = any(array%s)" % sorted([*held, *written]))
    for handler in ("single", "bulk"):
        assert_once_and_in_order(database, handler, committed)
    alive.wait(lambda: alive.ask("/v1/sources").json()["outbox"]["missing"] == 0, 20, "gaps closed")
    assert alive.stop() == 0


def test_a_rolling_restart_under_load_doubles_nothing(database, make_host):
    """Hosts come and go: shards are drained, saved and given back; shares stay fair."""
    rng, number = make_rng("shards.rolling"), sized(6_000, 60_000)
    make_seen(database)
    handlers = {"plain": PLAIN, "bulk": batch_recorder()}
    hosts = [make_host(settings=on_outbox(database, lease="3s"), handlers=handlers)
             for _ in range(3)]
    for host in hosts[:2]:
        host.start()
    wait_shares(*hosts[:2], shares=[32, 32])
    writers = Writers(database, number, rng.random()).start()
    hosts[2].start()
    wait_shares(*hosts, shares=[22, 21, 21])
    for host in hosts:
        rest = [other for other in hosts if other is not host]
        assert host.stop() == 0
        wait_shares(*rest, shares=[32, 32])
        host.start()
        wait_shares(*hosts, shares=[22, 21, 21])
    listed = hosts[0].ask("/v1/status").json()["sources"]["outbox"]["hosts"]
    assert sorted(entry["node"] for entry in listed) == sorted(node(host) for host in hosts)
    assert sum(entry["shards"] for entry in listed) == SHARDS
    assert node(hosts[1]) in hosts[0].cli("status", "--url", hosts[0].url).stdout
    committed = writers.join()
    wait_count(hosts[0], database, 2 * len(committed), timeout=120 * SLOWER)
    for handler in handlers:
        assert_once_and_in_order(database, handler, committed)
    for host in hosts:
        assert host.stop() == 0
    assert count(database, "event_hosts") == 0
    assert count(database, "event_shards", "owner <> ''") == 0


def test_a_frozen_host_that_wakes_up_writes_nothing(database, make_host):
    """Design 13.2: SIGSTOP for longer than the lease. Its workers stop by themselves, what it
    writes is refused, it says so, and has a fair share again afterwards."""
    rng, number = make_rng("shards.frozen"), sized(4_000, 40_000)
    make_seen(database)
    handlers = {"single": recorder(), "bulk": batch_recorder()}
    hosts = [make_host(settings=on_outbox(database, lease="2s"), handlers=handlers)
             for _ in range(2)]
    for host in hosts:
        host.start()
    wait_shares(*hosts, shares=[32, 32])
    sleeper, other = rng.sample(hosts, 2)
    owner = node(sleeper)
    writers = Writers(database, number, rng.random()).start()
    wait_count(other, database, number // 4, timeout=120 * SLOWER)
    with frozen(sleeper):
        wait_for(lambda: shards(other) == SHARDS, 30 * SLOWER, "all are taken over")
        epochs = dict(database.query("select shard, epoch from event_shards"))
        committed = writers.join()
        wait_count(other, database, 2 * len(committed), timeout=120 * SLOWER)
        # Nothing of the frozen host is left open in the database.
        assert not database.query("""select from pg_stat_activity where xact_start is not null
            and starts_with(application_name, 'moontide ' || right(%s, 40))""", (owner,))
        positions = dict(database.query("""select partition, owner from event_handler_positions
            where source = 'outbox' and handler_name = 'single'"""))
    sleeper.wait(lambda: sleeper.log_lines("shards lost"), 20, "it says that it lost them")
    wait_shares(*hosts, shares=[32, 32])
    after = dict(database.query("select shard, epoch from event_shards"))
    assert all(after[shard] >= epoch for shard, epoch in epochs.items())
    assert positions  # of the other, or of the sleeper before it was frozen
    more = {database.publish("Changed", "Thing", key, {"n": 0}): (key, 0)
            for key in keys_of(database, node(sleeper)).values()}
    wait_count(sleeper, database, 2 * (len(committed) + len(more)))
    for handler in handlers:
        assert_once_and_in_order(database, handler, {**committed, **more})
    for host in hosts:
        assert host.stop() == 0


NAPS = """
return {
  subscribes = { "*" }, start = "earliest", transaction = true,
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, '')",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
    ctx.tx:query("SELECT pg_sleep(seconds) FROM naps")
  end,
}
"""


def test_a_transaction_of_a_frozen_host_is_ended_by_who_takes_over(database, make_host):
    """Design 13.2: host and workers stand still, their backend is busy and holds locks that the
    same event needs elsewhere."""
    make_seen(database)
    database.query("create table naps as select 60 as seconds")
    hosts = [make_host(settings=on_outbox(database, lease="2s"), handlers={"naps": NAPS})
             for _ in range(2)]
    for host in hosts:
        host.start()
    wait_shares(*hosts, shares=[32, 32])
    sleeper, other = hosts
    key = next(iter(keys_of(database, node(sleeper)).values()))
    id = database.publish("Changed", "Thing", key, {"n": 1})
    wait_for(lambda: database.value("""select count(*) from pg_stat_activity
        where query like '%%pg_sleep(seconds)%%' and pid <> pg_backend_pid()"""), 20, "it runs")
    workers = sleeper.worker_pids()
    try:
        for pid in (sleeper.process.pid, *workers):
            os.kill(pid, signal.SIGSTOP)
        database.query("update naps set seconds = 0")
        wait_count(other, database, 1, timeout=20 * SLOWER)
        assert other.log_lines("sessions of a former owner ended")
    finally:
        for pid in (sleeper.process.pid, *workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    wait_shares(*hosts, shares=[32, 32])
    assert_once_and_in_order(database, "naps", {id: (key, 1)})
    assert [host.stop() for host in hosts] == [0, 0]


SLOW_KEY = """
local timer = require "moontide.timer"
return {
  subscribes = { "*" }, start = "earliest", transaction = true,
  allow = { db = true }, -- a transaction of its own for each
  handle = function(event, ctx)
    if event.payload.slow then
      while ctx.tx:query("SELECT 1 FROM gate")[1] == nil do timer.sleep("20ms") end
    end
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, '')",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end,
}
"""


def test_a_full_shard_is_paused_while_the_others_go_on(database, make_host):
    """Its window is full of one key: it gets a reading of its own, and comes back in order."""
    make_seen(database)
    database.query("create table gate (open int)")
    host = make_host(settings=on_outbox(database, lease="60s", window={"events": 64}),
                     handlers={"slow": SLOW_KEY}).start()
    host.wait(lambda: shards(host) == SHARDS, 20, "all shards")
    keys = list(keys_of(database, node(host)).values())
    slow, others = keys[0], keys[1:]
    publish = """select publish_event('Changed', 'Thing', key,
        jsonb_build_object('n', n, 'slow', %s::boolean)), key, n
        from unnest(%s) key, generate_series(0, %s::int) n order by n"""
    rows = database.query(publish, (True, [slow], 299))
    rows += database.query(publish, (False, others, 19))
    wait_count(host, database, 20 * len(others), where="key <> '%s'" % slow)
    assert count(database, where="key = '%s'" % slow) == 0
    host.wait(lambda: host.ask("/v1/sources").json()["outbox"]["readings"] == 2, 10, "two readings")
    database.query("insert into gate values (1)")
    wait_count(host, database, len(rows))
    host.wait(lambda: host.ask("/v1/sources").json()["outbox"]["readings"] == 1, 10, "one again")
    assert_once_and_in_order(database, "slow", {id: (key, n) for id, key, n in rows})
    assert host.stop() == 0


LETTERS = """
return {
  subscribes = { "*" }, start = "earliest", retry = { max_attempts = 1 },
  handle = function(event, ctx)
    if event.payload.bad then return ctx.dead("bad") end
  end,
}
"""


def test_what_a_former_owner_stores_late_is_refused(database, make_host):
    """A dead letter or a skip that waits for the database while the shard goes to another host
    is not written: the new owner decides. Also for positions."""
    make_seen(database)
    host = make_host(settings=on_outbox(database, lease="60s"), handlers={"letters": LETTERS})
    host.start()
    host.wait(lambda: shards(host) == SHARDS, 20, "all shards")
    key = next(iter(keys_of(database, node(host)).values()))
    shard = database.value("select moontide_shard(%s)", (key,))
    lock = database.connect()
    with lock.cursor() as cursor:  # the letter cannot be stored yet
        cursor.execute("lock table event_dead_letters in access exclusive mode")
    database.publish("Changed", "Thing", key, {"bad": True})
    wait_for(lambda: database.value("""select count(*) from pg_stat_activity
        where wait_event_type = 'Lock' and query like '%%event_dead_letters%%'"""), 20, "it waits")
    # Another host has the shard by now; that statement has not begun to look.
    database.query("update event_shards set owner = 'other', epoch = epoch + 1,"
                   " expires_at = now() + interval '1 hour' where shard = %s", (shard,))
    lock.rollback()
    host.wait(lambda: "fenced" in host.log_text(), 20, "it says that it is fenced")
    host.wait(lambda: shards(host) == SHARDS - 1, 20, "it gives the shard up")
    assert count(database, "event_dead_letters") == 0
    assert database.value("""select count(*) from event_handler_positions
        where partition = %s and seq > 1""", (str(shard),)) == 0
    database.query("update event_shards set owner = '' where shard = %s", (shard,))
    host.wait(lambda: count(database, "event_dead_letters") == 1, 30, "it has it again: one letter")
    assert host.stop() == 0


def test_a_token_holds_until_another_owner_has_a_higher_one(database):
    """moontide_holds(): of Kafka the position row decides, of the outbox the shard."""
    database.query("""insert into event_handler_positions (handler_name, source, partition, seq,
        epoch) values ('h', 'kafka', 'orders/1', 5, 3), ('h', 'outbox', '7', 5, 3)""")
    database.query("update event_shards set epoch = 3, owner = 'a' where shard = 7")

    def holds(*token):
        return database.value("select moontide_holds(%s, %s, %s, %s)", token)

    for source, partition in (("kafka", "orders/1"), ("outbox", "7")):
        assert holds("h", source, partition, 3)
        assert not holds("h", source, partition, 2)
        database.query("select moontide_fence('h', %s, %s, %s)", ([source], [partition], [3]))
        with pytest.raises(Exception, match="fenced: 1 of 1"):
            database.query("select moontide_fence('h', %s, %s, %s)", ([source], [partition], [2]))
    assert holds("new", "kafka", "orders/1", 1)  # its row is still on its way
    assert holds("", "kafka", "orders/1", 1)  # what cannot be decoded has none
    assert holds("h", "redrive", "0", 0)
    database.query("""select moontide_fence('h', '{kafka,outbox,outbox}', '{orders/1,7,7}',
        '{3,3,3}')""")
    with pytest.raises(Exception, match="fenced: 1 of 2"):
        database.query("select moontide_fence('h', '{kafka,outbox}', '{orders/1,8}', '{3,3}')")


def test_a_database_that_is_away_longer_than_the_lease(own_postgres, make_host):
    """Nobody can renew: both stop delivering by their own clocks, and share again afterwards."""
    rng = make_rng("shards.away")
    own_postgres.query("create database shop")
    database = Database(own_postgres, "shop")
    handlers = {"single": recorder(), "bulk": batch_recorder()}
    hosts = [make_host(settings=on_outbox(database, lease="2s"), handlers=handlers)
             for _ in range(2)]
    hosts[0].cli("migrate", "up", "-c", str(hosts[0].conf))
    make_seen(database)
    for host in hosts:
        host.start()
    wait_shares(*hosts, shares=[32, 32])
    keys = [f"00000000-0000-4000-8000-{i:012d}" for i in range(200)]
    publish = """select publish_event('Changed', 'Thing', key, jsonb_build_object('n', n)),
                 key, n from unnest(%s) key, generate_series(%s::int, %s::int) n order by n"""
    rows = database.query(publish, (keys, 0, 9))
    wait_count(hosts[0], database, rng.randrange(1, 1000))
    own_postgres.stop()
    for host in hosts:
        host.wait(lambda host=host: host.log_lines("shards lost"), 30, "it stops delivering")
        assert shards(host) == 0
    own_postgres.start()
    rows += database.query(publish, (keys, 10, 12))
    wait_shares(*hosts, shares=[32, 32], timeout=40)
    wait_count(hosts[0], database, 2 * len(rows), timeout=60)
    for handler in handlers:
        assert_once_and_in_order(database, handler, {id: (key, n) for id, key, n in rows})
    assert count(database, "event_dead_letters") == 0
    for host in hosts:
        assert host.stop() == 0


def migrate_below_shards(host, database):
    while database.value("select to_regclass('event_shards')"):
        assert host.cli("migrate", "down", "-c", str(host.conf)).returncode == 0


def test_positions_of_the_whole_become_those_of_its_shards(database, make_host):
    """Migration 0009: nothing again and nothing left out, gaps included."""
    make_seen(database)
    host = make_host(settings=on_outbox(database), handlers={"recorder": recorder()})
    ids = [database.publish("Changed", "Thing", f"00000000-0000-4000-8000-{i:012d}", {"n": i})
           for i in range(200)]
    migrate_below_shards(host, database)
    host.spawn()
    host.wait(lambda: "run moontide migrate up" in host.log_text(), 20, "it says what to do")
    host.stop()
    system = database.value("select system_identifier::text from pg_control_system()")
    database.query("""insert into event_handler_positions
        (handler_name, source, partition, source_id, seq, gaps, epoch)
        values ('recorder', 'outbox', '0', %s, 150, '{[20,25),[77,78)}', 9)""", (system,))
    host.cli("migrate", "up", "-c", str(host.conf))
    assert database.query("""select count(*), min(seq), max(seq), min(gaps::text), max(gaps::text)
        from event_handler_positions""") == [(SHARDS, 150, 150, "{[20,25),[77,78)}",
                                              "{[20,25),[77,78)}")]
    host.start()
    expected = [20, 21, 22, 23, 24, 77, *range(150, 201)]
    wait_count(host, database, len(expected))
    assert sorted(n + 1 for n, in database.query("select n from seen")) == expected
    assert host.stop() == 0
    migrate_below_shards(host, database)
    assert database.query("select partition, seq, gaps::text from event_handler_positions") == [
        ("0", 201, "{}")]
    assert len(ids) == 200


def test_positions_that_nothing_happened_in_are_not_written(database, make_host):
    """64 shards of many handlers: a row is written where something was settled."""
    make_seen(database)
    idle = {f"idle{i}": recorder('"Nothing"') for i in range(10)}
    host = make_host(settings=on_outbox(database, positions={"interval": "50ms"}),
                     handlers={"busy": recorder(), **idle}).start()
    host.wait(lambda: shards(host) == SHARDS, 20, "all shards")
    host.wait(lambda: count(database, "event_handler_positions") == 11 * SHARDS, 20, "rows")
    key = "00000000-0000-4000-8000-000000000001"
    before = dict(database.query("select (handler_name, partition)::text, xmin::text"
                                 " from event_handler_positions"))
    for n in range(50):
        database.publish("Changed", "Thing", key, {"n": n})
        wait_count(host, database, n + 1)
    shard = str(database.value("select moontide_shard(%s)", (key,)))
    host.wait(lambda: database.value("""select seq from event_handler_positions
        where handler_name = 'busy' and partition = %s""", (shard,)) == 51, 20, "saved")
    after = dict(database.query("select (handler_name, partition)::text, xmin::text"
                                " from event_handler_positions"))
    assert [row for row in after if after[row] != before[row]] == [f"(busy,{shard})"]
    assert host.stop() == 0
    assert database.query("select distinct seq from event_handler_positions") == [(51,)]


def test_a_new_handler_starts_where_each_shard_stands(database, make_host):
    """Interfaces 2: start = "now" is now in every shard, with two hosts as with one."""
    make_seen(database)
    hosts = [make_host(settings=on_outbox(database), handlers={"old": recorder()})
             for _ in range(2)]
    for host in hosts:
        host.start()
    wait_shares(*hosts, shares=[32, 32])
    keys = [f"00000000-0000-4000-8000-{i:012d}" for i in range(100)]
    for key in keys:
        database.publish("Changed", "Thing", key, {"n": 0})
    wait_count(hosts[0], database, len(keys))
    for host in hosts:
        host.handler("fresh", recorder().replace('start = "earliest"', 'start = "now"'))
    hosts[0].wait(lambda: count(database, "event_handler_positions",
                                "handler_name = 'fresh'") == SHARDS, 30, "it is open")
    written = {database.publish("Changed", "Thing", key, {"n": 1}): (key, 1) for key in keys}
    wait_count(hosts[0], database, len(keys), where="handler = 'fresh'")
    assert_once_and_in_order(database, "fresh", written)


def test_two_outboxes_do_not_share_the_shards_of_one_schema(database, make_host):
    """The second one is told what to do, and takes nothing."""
    database.query("create table other_events (like domain_events including defaults)")
    first, second = (make_host(settings=on_outbox(database, outbox={"table": table}))
                     for table in ("domain_events", "other_events"))
    first.start()
    first.wait(lambda: shards(first) == SHARDS, 20, "all shards")
    second.start()
    second.wait(lambda: second.log_lines("no shards can be taken"), 20, "it says why")
    assert shards(second) == 0 and shards(first) == SHARDS
    assert first.stop() == 0
    assert shards(second) == 0
    second.stop()
    second.start()
    second.wait(lambda: shards(second) == SHARDS, 20, "it is alone")


def test_a_killed_hosts_successor_on_its_machine_does_not_wait_for_its_lease(database, make_host):
    """kill -9 and a start again: whoever can see that the owner is dead ends its lease at once."""
    make_seen(database)
    settings = on_outbox(database, lease="60s")
    before = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    wait_shares(before, shares=[SHARDS])
    killed = node(before)
    before.kill()
    ids = {database.publish("Changed", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": 0})
           for n in range(100)}
    after = make_host(settings=settings, handlers={"recorder": recorder()})
    begun = time.monotonic()
    after.start()
    wait_count(after, database, len(ids), timeout=30 * SLOWER)
    took = time.monotonic() - begun
    assert took < 10 * SLOWER, f"{took:.1f} s"
    assert [line["node"] for line in
            after.log_lines("a host has died on this machine: its shards are free")] == [killed]
    assert {id for id, in database.query("select event_id from seen")} == ids
    assert database.query("select node from event_hosts") == [(node(after),)]
    assert after.stop() == 0


def test_a_stopped_host_on_the_same_machine_keeps_its_lease(database, make_host):
    """It may wake up: until its time is over nobody robs it, though it answers nothing."""
    make_seen(database)
    settings = on_outbox(database, lease="6s")
    first = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    wait_shares(first, shares=[SHARDS])
    with frozen(first):
        second = make_host(settings=settings, handlers={"recorder": recorder()}).start()
        second.wait(lambda: shards(second) > 0, 30 * SLOWER, "shards of the one that is stopped")
        # As the database's clock saw it: taken after the last renewal had ended.
        assert database.value("""
            select min(s.since) >= max(h.expires_at) from event_shards s, event_hosts h
            where s.owner = %s and h.node <> %s""", (node(second), node(second)))
        assert not second.log_lines("a host has died on this machine: its shards are free")
    wait_shares(first, second, shares=[32, 32])
    assert first.stop() == 0 and second.stop() == 0


def test_a_dead_host_of_another_machine_is_waited_for(database, make_host):
    """The same pid means nothing there: a process is known by its boot and its PID namespace."""
    make_seen(database)
    settings = on_outbox(database, lease="6s")
    before = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    wait_shares(before, shares=[SHARDS])
    before.kill()
    boot, rest = database.value("select process from event_hosts").split(" ", 1)
    database.query("update event_hosts set process = %s",
                   (f"{boot[::-1] if boot != boot[::-1] else 'x'} {rest}",))
    ends = database.value("select max(expires_at) from event_shards")
    after = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    wait_shares(after, shares=[SHARDS], timeout=30)
    assert not after.log_lines("a host has died on this machine: its shards are free")
    assert database.value("select min(since) from event_shards") >= ends
    assert after.stop() == 0
