"""What the scenarios share: handlers, events and independent counts of them.

A check never asks moontide whether moontide was right: what must have come out
is worked out here, from what was written into the topic or the table.
"""

import json
import os
import random
import shutil
import signal
from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from harness import FULL
from servers import ROOT, wait_for

#: Writes what it sees, in the order it sees it, within its transaction.
RECORDER = """
return {
  description = "Remembers what it saw, in order.",
  subscribes = { %(types)s },
  start = "earliest",
  transaction = true,
  concurrency = %(concurrency)d,
  %(more)s
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, $5)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n, "%(version)s")
  end,
}
"""

BATCH_RECORDER = """
return {
  description = "Remembers what it saw, in order, many at a time.",
  subscribes = { %(types)s },
  start = "earliest",
  transaction = true,
  concurrency = 1000,
  batch = { max = 200, wait = "5ms" },
  handle_batch = function(events, ctx)
    local rows = {}
    for i, event in ipairs(events) do
      rows[i] = { ctx.handler, event.id, event.aggregate_id, event.payload.n, "%(version)s" }
    end
    ctx.tx:copy("seen", { "handler", "event_id", "key", "n", "version" }, rows)
  end,
}
"""


def recorder(types='"*"', version="1", concurrency=16, more=""):
    return RECORDER % {"types": types, "version": version, "concurrency": concurrency,
                       "more": more}


def batch_recorder(types='"*"', version="1"):
    return BATCH_RECORDER % {"types": types, "version": version}


def make_seen(database):
    """The table the recorders write to; `place` is the order of writing."""
    database.query("""
        create table seen (place bigserial primary key, handler text, event_id text, key text,
                           n bigint, version text, at timestamptz default clock_timestamp())""")


def count(database, table="seen", where="true"):
    return database.value(f"select count(*) from {table} where {where}")


def assert_once_and_in_order(database, handler, expected):
    """`expected`: event id -> (key, n), n rising within each key."""
    rows = database.query("select event_id, key, n from seen where handler = %s order by place",
                          (handler,))
    seen = [row[0] for row in rows]
    missing = set(expected) - set(seen)
    assert not missing, f"{len(missing)} lost, such as {sorted(missing)[:3]}"
    extra = set(seen) - set(expected)
    assert not extra, f"{len(extra)} never written, such as {sorted(extra)[:3]}"
    assert len(seen) == len(set(seen)), f"{len(seen) - len(set(seen))} doubled"
    last = defaultdict(lambda: -1)
    inverted = []
    for event_id, key, n in rows:
        if n <= last[key]:
            inverted.append((key, last[key], n))
        last[key] = n
    assert not inverted, f"{len(inverted)} out of order, such as {inverted[:3]}"


# --- the four handlers ---------------------------------------------------------


def four_handlers(database, topics=(), kafka=None, **more):
    """Settings of a host with the project's own handlers, templates and lua/."""
    settings = {
        "database": {"url": database.url},
        "templates": {"path": str(ROOT / "templates")},
        "handlers": {"lua": str(ROOT / "lua")},
    }
    if kafka:
        settings["kafka"] = {"brokers": kafka, "topics": list(topics)}
        settings["rdkafka"] = QUICK_GROUP
    settings.update(more)
    return settings


#: A dead member of the group is missed after 2 s, not after 45.
QUICK_GROUP = {"session.timeout.ms": 2000, "heartbeat.interval.ms": 300}


def copy_handlers(host, names=("audit", "notification", "analytics", "compliance")):
    """The project's handlers in the host's own folder, beside the test's."""
    for name in names:
        shutil.copy(ROOT / "handlers" / f"{name}.lua", host.handlers / f"{name}.lua")


# --- events with known results ---------------------------------------------------

PADDING = "moon" * 75


def shop_event(rng, number, keys):
    """(id, key, n, envelope): one of a mix of types, ~600 bytes, n rising per key."""
    key = f"00000000-0000-4000-8000-{number % keys:012d}"
    kind = rng.choices(("CallCompleted", "CallFailed", "BidPlaced", "BidWon",
                        "TransactionCreated", "order.created", "order.paid", "CallCreated",
                        "SomethingElse"), (10, 4, 20, 5, 20, 15, 15, 1, 10))[0]
    money = f"{rng.randrange(1, 100000) / 100:.2f}"
    payload = {
        "CallCompleted": {"duration_seconds": rng.randrange(900), "cost": money, "currency": "USD"},
        "CallCreated": {"from": "+18005550100", "to": f"+1212555{rng.randrange(10000):04d}",
                        "time_zone": "America/New_York"},
        "BidPlaced": {"amount": money, "currency": "USD"},
        "BidWon": {"amount": money, "currency": "USD"},
        "TransactionCreated": {"type": rng.choice(("charge", "payout", "fee")), "amount": money,
                               "currency": rng.choice(("USD", "EUR"))},
        "order.created": {"total": money, "currency": "USD"},
        "order.paid": {"total": money, "currency": "USD"},
    }.get(kind, {})
    payload.update(n=number // keys, note=PADDING)
    id = f"11111111-0000-4000-8000-{number:012d}"
    body = {"id": id, "eventType": kind, "eventVersion": 1, "aggregateType": kind.split(".")[0],
            "aggregateId": key, "payload": payload,
            "occurredAt": f"2026-03-{1 + number % 3:02d}T{number % 24:02d}:00:00.000000Z",
            "metadata": {"actorId": "test", "correlationId": f"c{number % 50}"}}
    return id, key, number // keys, body


MEASURES = {
    "CallCompleted": lambda p: [("calls", "completed", "", p["duration_seconds"]),
                                ("call_cost", "completed", p["currency"], p["cost"])],
    "CallFailed": lambda p: [("calls", "failed", "", 0)],
    "BidPlaced": lambda p: [("bids", "placed", p["currency"], p["amount"])],
    "BidWon": lambda p: [("bids", "won", p["currency"], p["amount"])],
    "TransactionCreated": lambda p: [("transactions", p["type"], p["currency"], p["amount"])],
    "order.created": lambda p: [("orders", "created", p["currency"], p["total"])],
    "order.paid": lambda p: [("orders", "paid", p["currency"], p["total"])],
}


def analytics_of(bodies):
    """(hour, metric, kind, currency) -> (events, total), counted from envelopes."""
    sums = defaultdict(lambda: [0, Decimal(0)])
    for body in bodies:
        for metric, kind, currency, total in MEASURES.get(body["eventType"], lambda p: [])(
                body["payload"]):
            at = datetime.fromisoformat(body["occurredAt"].replace("Z", "+00:00"))
            entry = sums[(at.replace(minute=0, second=0, microsecond=0), metric, kind, currency)]
            entry[0] += 1
            entry[1] += Decimal(str(total))
    return {key: tuple(value) for key, value in sums.items()}


def analytics_in(database):
    """The same, as the handler wrote it."""
    rows = database.query(
        "select hour, metric, kind, currency, events, total from event_analytics_hourly")
    return {(hour, metric, kind, currency): (events, total)
            for hour, metric, kind, currency, events, total in rows}


# --- fate ---------------------------------------------------------------------------


def make_rng(name):
    """Random, and said: MOONTIDE_TEST_SEED repeats a run."""
    seed = int(os.environ.get("MOONTIDE_TEST_SEED") or random.SystemRandom().randrange(10**9))
    print(f"{name}: MOONTIDE_TEST_SEED={seed}")
    return random.Random(seed)


def kill_a_worker(host, rng):
    """SIGKILL for one of its workers; False when none is up just now."""
    pids = host.worker_pids()
    if not pids:
        return False
    try:
        os.kill(rng.choice(pids), signal.SIGKILL)
        return True
    except ProcessLookupError:
        return False


def ends_and_lag_are_reached(host, topics, topic, group="moontide"):
    """The group's offsets stand at the ends, and the lag metrics at 0."""
    def at_the_end():
        ends, committed = topics.ends(topic), topics.committed(topic, group)
        return all(committed.get(p) == end for p, end in ends.items() if end > 0)
    host.wait(at_the_end, 20, "committed offsets at the end")
    host.wait(lambda: host.metric("moontide_source_lag") == 0
              and host.metric("event_handler_lag_seconds") == 0, 20, "lag 0")


def sized(small, full):
    """How much: the small number in a usual run, the large with MOONTIDE_TEST_FULL."""
    return full if FULL else small


def json_lines(text):
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def wait_count(host, database, n, table="seen", where="true", timeout=60):
    """Until the table has n rows."""
    def enough():
        return count(database, table, where) >= n
    try:
        host.wait(enough, timeout, f"{n} rows in {table}")
    except AssertionError as fault:
        raise AssertionError(f"{count(database, table, where)} of {n} rows in {table}: "
                             f"{fault}") from None


def processes_of(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def wait_gone(pids, timeout=15):
    wait_for(lambda: not processes_of(pids), timeout, f"processes {pids} gone")
