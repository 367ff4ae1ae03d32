"""Rows E: events that are broken, huge, odd, unknown, repeated, shuffled and late."""

import json
import time
import uuid

from harness import SLOWER, envelope
from oracle import inversions, rows_of
from producer import key_of
from scenes import ends_and_lag_are_reached, wait_count

LIMIT = 1 << 20  # event.max_bytes

MALFORMED = {
    "half": lambda rng: b'{"eventType": "T", "n": ' + str(rng.random()).encode(),
    "empty": lambda rng: b"",
    "tombstone": lambda rng: None,
    "bom": lambda rng: b"\xef\xbb\xbf" + envelope(rng.randrange(10**6)),
    "trailing": lambda rng: envelope(rng.randrange(10**6)) + b" garbage",
    "text": lambda rng: b"hello " + str(rng.random()).encode(),
    "random": lambda rng: rng.randbytes(rng.randrange(1, 300)),
    "not utf-8": lambda rng: b'{"eventType":"T\xff\xfe","payload":{"n":1}}',
    "zeros": lambda rng: b"\0" * rng.randrange(1, 100),
    "no type": lambda rng: b'{"id": "x", "payload": {"n": 1}}',
}


def letters_of(database):
    """(partition, place) -> (class, body, error)"""
    return {(partition, place): (kind, None if body is None else bytes(body), error)
            for partition, place, kind, body, error in database.query(
        "select partition, place, class, body, error from event_dead_letters")}


def write(stage, records, **config):
    """(key, value) into the topic; gives (partition name, offset) -> value."""
    placed = {}
    producer = stage.topics.producer(**config)

    def done(value):
        def note(err, record):
            assert not err, err
            placed[f"{record.topic()}/{record.partition()}", record.offset()] = value
        return note

    for key, value in records:
        while True:
            try:
                producer.produce(stage.topic, key=key, value=value, on_delivery=done(value))
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(120) == 0
    return placed


def finished(stage, host):
    ends_and_lag_are_reached(host, stage.topics, stage.topic, stage.topics.prefix)


def test_E1_malformed_records_are_dead_letters_with_their_bytes(stage):
    each = stage.sized(200, 10_000)
    records = [(name, make(stage.rng)) for name, make in MALFORMED.items() for _ in range(each)]
    stage.rng.shuffle(records)
    placed = write(stage, records)
    stage.fault(len(placed))
    begun = time.monotonic()
    host = stage.host(stage.on_kafka()).start()
    wait_count(host, stage.database, len(placed), "event_dead_letters", timeout=300)
    rate = len(placed) / (time.monotonic() - begun)
    finished(stage, host)
    letters = letters_of(stage.database)
    assert set(letters) == set(placed)
    for place, (kind, body, error) in letters.items():
        assert kind == "undecodable" and error, f"{place}: {kind} {error}"
        assert (body or b"") == (placed[place] or b""), place
    assert stage.count() == 0
    assert not stage.long or rate >= 5000 / SLOWER, f"{rate:.0f} a second"
    assert host.stop() == 0


def highest(host, condition, timeout=120):
    """Wait for the condition; the largest RSS (KiB) of the host meanwhile."""
    most = 0

    def looked():
        nonlocal most
        most = max(most, host.rss_kib(host.process.pid))
        return condition()
    host.wait(looked, timeout * SLOWER, "the host is through")
    return most


def nested(depth):
    return (b'{"id":"nested","eventType":"T","aggregateType":"A","aggregateId":"k","payload":'
            + b'{"n":1,"x":' + b"[" * depth + b"]" * depth + b"}}")


def test_E2_deep_wide_and_long_events_are_refused_in_bounded_time_and_memory(stage):
    size = stage.sized(20, 90) << 20
    names = {
        "deep": nested(10_000), "deeper": nested(100_000),
        "wide": envelope(2, payload={f"k{i}": i for i in range(1_000_000)}),
        "long": envelope(3, payload={"x": "x" * size}),
    }
    stage.topics.create("large", 1, max_message_bytes=200 << 20)
    stage._topic = f"{stage.topics.prefix}.large"
    host = stage.host(stage.on_kafka()).start()
    write(stage, [("k", envelope(0, aggregate_id="k"))])
    wait_count(host, stage.database, 1)
    before_kib, placed = host.rss_kib(host.process.pid), {}
    for done, value in enumerate(names.values(), 1):
        placed.update(write(stage, [("k", value)], message_max_bytes=250 << 20))
        stage.fault()
        most = highest(host, lambda: stage.database.value(
            "select count(*) from event_dead_letters") >= done)
        # librdkafka has it whole before anybody is asked: see docs/RELIABILITY.md.
        assert most < before_kib + (5 * max(len(value), LIMIT) >> 10), f"{most} KiB"
    write(stage, [("k", envelope(9, aggregate_id="k", id="last"))])
    wait_count(host, stage.database, 1, where="event_id = 'last'")
    finished(stage, host)
    letters = letters_of(stage.database)
    assert set(letters) == set(placed), "each refused"
    assert all(kind == "undecodable" and error for kind, _, error in letters.values())
    assert host.stop() == 0


ODD = {
    "big int": '{"n": %d, "x": 9007199254740993}',
    "bigger int": '{"n": %d, "x": 18446744073709551615}',
    "many digits": '{"n": %d, "x": 0.1234567890123456789012345}',
    "lone surrogate": '{"n": %d, "x": "\\ud800"}',
    "escaped nul": '{"n": %d, "x": "a\\u0000b"}',
    "huge exponent": '{"n": %d, "x": 1e400}',
    "duplicate keys": '{"n": %d, "x": 1, "x": 2}',
    "empty names": '{"n": %d, "": {"": []}}',
    "null": '{"n": %d, "x": null, "y": [null, {}]}',
    "minus zero": '{"n": %d, "x": -0.0, "y": 1E+2}',
    "far planes": '{"n": %d, "x": "\U0001f600\u202e\ufeff"}',
    "spaces": '{ "n" : %d ,\n\t"x" : [ 1 , 2 ] }',
}

#: The payload as it came, and as an untouched table is written again.
COPIES = """
local json = require "moontide.json"
return { subscribes = { "*" }, start = "earliest", transaction = true, retry = { max_attempts = 1 },
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO copies (id, raw, encoded) VALUES ($1, convert_to($2, 'UTF8'), $3)",
      event.id, event.raw, json.encode(event.payload))
  end }
"""


def test_E3_odd_but_legal_events_pass_unchanged_or_die_with_their_bytes(stage):
    stage.database.query("create table copies (id text, raw bytea, encoded text)")
    host = stage.host(stage.on_kafka(), {"copies": COPIES}).start()
    records, sent = [], {}
    for turn in range(stage.sized(20, 1000)):
        for name, text in ODD.items():
            id, payload = f"{name}/{turn}", text % turn
            body = (f'{{"id":"{id}","eventType":"T","aggregateType":"A","aggregateId":"k{turn % 7}",'
                    f'"payload":{payload},"metadata":{{}}}}').encode()
            records.append((f"k{turn % 7}", body))
            sent[id] = payload.encode()
    placed = write(stage, records)
    stage.fault(len(records))
    host.wait(lambda: stage.database.value("select (select count(*) from copies) +"
                                           " (select count(*) from event_dead_letters)") >= len(records),
              120, "all of them")
    finished(stage, host)
    copies = {id: (bytes(raw), encoded) for id, raw, encoded in stage.database.query(
        "select id, raw, encoded from copies")}
    letters = letters_of(stage.database)
    for place, (_, body, error) in letters.items():
        assert body == placed[place] and error, place
    assert len(copies) + len(letters) == len(records)
    for id, (raw, encoded) in copies.items():
        assert raw == sent[id], f"{id}: {raw!r}"
        assert encoded.encode() == sent[id], f"{id}: {encoded!r}"
    passed = {id.split("/")[0] for id in copies}
    assert {"big int", "bigger int", "many digits", "empty names", "null", "spaces"} <= passed, passed
    assert host.stop() == 0



def test_E4_unknown_types_do_not_grow_the_metrics(stage):
    """Policies per type, schema ids and violations come with the event catalogue."""
    number = stage.sized(2000, 100_000)
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", count=200).wait()
    stage.drain(host)
    before = host.metrics()
    with stage.database.connect() as connection, connection.cursor() as cursor:
        for n in range(number):
            cursor.execute("select publish_event(%s, %s, %s, %s)",
                           (f"Unknown{stage.rng.getrandbits(64):x}", "Thing", key_of(n % 50),
                            json.dumps({"n": n})))
            stage.journal.add(cursor.fetchone()[0], f"other{n % 50}", n)
    connection.close()
    stage.fault(number)
    host.wait(lambda: stage.count_of("tx") >= 200 + number, 120, "all of them")
    grown = len(host.metrics()) - len(before)
    stage.check("tx", ordered=False)
    assert grown < 300, f"{grown} more series for {number} types"
    assert host.stop() == 0


def test_E5_events_come_twice_shuffled_and_late(stage):
    """Effects exactly once; each key in the order of its partition."""
    number = stage.sized(5000, 100_000)
    rng, records, order = stage.rng, [], []
    late = time.time() - 30 * 86400
    for i in range(number):
        key = key_of(i % 97)
        id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(late if rng.random() < 0.1 else time.time()))
        records.append((key, envelope(i, aggregate_id=key, id=id, occurredAt=at), id, i))
    for i in range(0, number - 50, 50):  # a fifth of them somewhere else near by
        for _ in range(10):
            a, b = i + rng.randrange(50), i + rng.randrange(50)
            records[a], records[b] = records[b], records[a]
    twice = records + rng.sample(records, number // 5)
    for i in sorted(rng.sample(range(number), number // 20), reverse=True):
        twice.insert(i + rng.randrange(1, 20), records[i])  # and some soon after the first time
    host = stage.host(stage.on_kafka()).start()
    write(stage, [(key, value) for key, value, _, _ in twice])
    stage.fault(len(twice) - number)
    first = set()
    for key, _, id, n in twice:
        if id not in first:
            first.add(id)
            order.append((id, key, n))
            stage.journal.add(id, key, n)
    wait_count(host, stage.database, number, where="handler = 'tx'", timeout=300)
    finished(stage, host)
    stage.check("tx", ordered=False)
    stage.check("plain", "effects", len(twice), ordered=False)
    by_key = {}
    for id, key, _ in order:
        by_key.setdefault(key, []).append(id)
    seen = {}
    for id, key, _ in rows_of(stage.database, "seen", "tx"):
        seen.setdefault(key, []).append(id)
    assert seen == by_key, "not in the order of the partition"
    assert host.metric("moontide_duplicates_total", handler="tx") == len(twice) - number
    assert inversions([(1, "k", 1), (2, "k", 0)]), "the oracle sees an inversion"
    assert host.stop() == 0


def sized_event(number, size):
    bare = envelope(number, aggregate_id="k", payload={"n": number, "x": ""})
    return envelope(number, aggregate_id="k", payload={"n": number, "x": "x" * (size - len(bare))})


def test_E6_events_around_the_largest_size_and_bombs(stage):
    """One byte too many is a dead letter; what unpacks to a thousand times its size
    does not take the host's memory."""
    stage.topics.create("large", 1, max_message_bytes=64 << 20)
    stage._topic = f"{stage.topics.prefix}.large"
    host = stage.host(stage.on_kafka()).start()
    sizes = {n: LIMIT + n - 2 for n in (1, 2, 3)}
    write(stage, [("k", sized_event(n, size)) for n, size in sizes.items()],
          message_max_bytes=8 << 20)
    wait_count(host, stage.database, 2)
    wait_count(host, stage.database, 1, "event_dead_letters")
    assert {n for n, in stage.database.query("select n from seen")} == {1, 2}
    before_kib = host.rss_kib(host.process.pid)
    bomb = stage.sized(60, 400) << 20
    for done, codec in enumerate(("gzip", "lz4", "zstd", "snappy"), 2):
        write(stage, [("bomb", b"\0" * bomb)], message_max_bytes=1_000_000_000,
              compression_type=codec, queue_buffering_max_kbytes=2_000_000)
        stage.fault()
        most = highest(host, lambda: stage.database.value(
            "select count(*) from event_dead_letters") >= done)
        # librdkafka unpacks it before anybody is asked: see docs/RELIABILITY.md.
        assert most < before_kib + (5 * bomb >> 10), f"{codec}: {most} KiB"
    write(stage, [("k", envelope(9, aggregate_id="k"))])
    wait_count(host, stage.database, 1, where="n = 9")
    finished(stage, host)
    host.wait(lambda: host.rss_kib(host.process.pid) < before_kib + 65536, 30, "memory given back")
    assert host.stop() == 0
