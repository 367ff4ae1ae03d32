"""The edges of Kafka: what is gone, what cannot be read, what was made anew.

Never a silent jump: a partition stands still and says so until an operator
chooses, and what was given up by that stays on record.
"""

import json
import socket
import struct
import time
from pathlib import Path

from confluent_kafka.admin import NewPartitions
from harness import Topics, envelope
from scenes import QUICK_GROUP, count, make_seen, recorder, wait_count
from servers import Kafka, wait_for


def settings_for(topics, database, *names, **kafka):
    return {"kafka": {"brokers": topics.bootstrap, "topics": list(names),
                      "group_id": topics.prefix, **kafka},
            "database": {"url": database.url},
            "rdkafka": {**QUICK_GROUP, "topic.metadata.refresh.interval.ms": 500}}


def records(first, last, key="k"):
    return [(key, envelope(n, aggregate_id=key), None) for n in range(first, last)]


def numbers(database, where="true"):
    return [row[0] for row in database.query(f"select n from seen where {where} order by place")]


def delete_before(topics, topic, offset, partition=0):
    """DeleteRecords by hand: the client's admin has it in later versions only."""
    def text(value):
        return struct.pack(">h", len(value)) + value.encode()

    body = struct.pack(">hhi", 21, 1, 7) + text("test")
    body += struct.pack(">i", 1) + text(topic)
    body += struct.pack(">iiqi", 1, partition, offset, 30000)
    host, port = topics.bootstrap.split(":")
    with socket.create_connection((host, int(port)), 30) as broker:
        broker.sendall(struct.pack(">i", len(body)) + body)
        reply = broker.recv(4096)
    low, error = struct.unpack(">qh", reply[-10:])
    assert (low, error) == (offset, 0), reply


def partition_of(host, name):
    sources = host.ask("/v1/sources").json()
    return next((p for p in sources["partitions"] if p["partition"] == name), None)


def trouble_of(host, name):
    return (partition_of(host, name) or {}).get("trouble")


def cli(host, *args, check=True):
    return host.cli(*args, "--url", host.url, check=check)


def given_up(database):
    return database.query("select handler, partition, first_place, last_place, reason"
                          " from event_given_up order by id")


def test_what_retention_took_stops_the_partition_until_an_operator_moves_it(
        database, topics, make_host):
    make_seen(database)
    topic = topics.create("events", 1)
    topics.produce(topic, records(0, 10))
    host = make_host(settings=settings_for(topics, database, topic),
                     handlers={"recorder": recorder()}).start()
    wait_count(host, database, 10)
    assert host.stop() == 0
    topics.produce(topic, records(10, 30))
    delete_before(topics, topic, 20)  # 10 to 19 are gone, unread

    host.start()
    name = f"{topic}/0"
    host.wait(lambda: trouble_of(host, name), 30, "the partition stands still")
    ready = host.ask("/readyz")
    assert ready.status == 503
    assert any(r.get("source") == name and "offset 10" in r["why"] for r in ready.json()["reasons"])
    topics.produce(topic, records(30, 32))
    assert count(database) == 10, "never a silent jump"

    # Without a reason, backwards, or out of what is there: refused.
    assert cli(host, "sources", "move", name, "--to", "earliest", check=False).returncode == 2
    for to in ("5", "33", "nowhere"):
        refused = cli(host, "sources", "move", name, "--to", to, "--reason", "x", check=False)
        assert refused.returncode == 4, (to, refused.stderr)
    assert given_up(database) == []

    done = cli(host, "sources", "move", name, "--to", "earliest", "--reason", "retention was 1 h")
    assert "goes on at 20" in done.stdout
    wait_count(host, database, 22)
    assert numbers(database) == list(range(10)) + list(range(20, 32))
    assert given_up(database) == [("recorder", name, 10, 19, "retention was 1 h")]
    assert host.metric("moontide_given_up_total", handler="recorder") == 10
    assert host.log_lines("events given up")[0]["first"] in (10, "10")
    assert host.ask("/v1/sources").json()["givenUp"][0]["last"] == 19
    assert "retention was 1 h" in cli(host, "sources", "moves").stdout
    host.wait(lambda: host.ask("/readyz").status == 200, 10, "ready again")
    # Without trouble, only by force.
    topics.produce(topic, records(32, 33))
    wait_count(host, database, 23)
    refused = cli(host, "sources", "move", name, "--to", "latest", "--reason", "x", check=False)
    assert refused.returncode == 4 and "no trouble" in refused.stderr
    assert host.stop() == 0
    host.start()  # the position is behind what was given up
    topics.produce(topic, records(33, 34))
    wait_count(host, database, 24)
    assert host.stop() == 0


def test_one_handler_that_reads_by_itself_is_moved_alone(database, topics, make_host):
    make_seen(database)
    topic = topics.create("events", 1)
    host = make_host(settings=settings_for(topics, database, topic),
                     handlers={"held": recorder(), "other": recorder()}).start()
    topics.produce(topic, records(0, 5))
    wait_count(host, database, 10)
    text = (host.handlers / "held.lua").read_text()
    (host.handlers / "held.lua").unlink()  # held, as by a pause
    host.wait(lambda: host.metric("moontide_detached", handler="held") == 1, 10, "held")
    topics.produce(topic, records(5, 40))
    wait_count(host, database, 40, where="handler = 'other'")
    delete_before(topics, topic, 30)
    host.handler("held", text)
    name = f"{topic}/0"
    host.wait(lambda: trouble_of(host, name), 30, "it cannot read what is gone")
    assert "handler held" in trouble_of(host, name)
    topics.produce(topic, records(40, 45))
    wait_count(host, database, 45, where="handler = 'other'")  # it stops nobody

    cli(host, "sources", "move", name, "--to", "earliest", "--handler", "held", "--reason", "gone")
    wait_count(host, database, 20, where="handler = 'held'")
    assert numbers(database, "handler = 'held'") == list(range(5)) + list(range(30, 45))
    assert numbers(database, "handler = 'other'") == list(range(45))
    assert given_up(database) == [("held", name, 5, 29, "gone")]
    host.wait(lambda: host.ask("/readyz").status == 200, 10, "ready again")
    assert host.stop() == 0


def test_a_topic_made_anew_is_read_from_its_start(database, topics, make_host):
    make_seen(database)
    topic = topics.create("events", 1)
    host = make_host(settings=settings_for(topics, database, topic),
                     handlers={"recorder": recorder()}).start()
    topics.produce(topic, records(0, 10))
    wait_count(host, database, 10)
    topics.admin.delete_topics([topic])[topic].result(30)
    wait_for(lambda: topic not in topics.admin.list_topics(timeout=5).topics, 30, "it is gone")
    topics.create("events", 1)
    # More than were in the former: the old offset exists in the new topic, too.
    topics.produce(topic, records(100, 125))
    wait_count(host, database, 35, timeout=60)
    assert sorted(numbers(database)) == list(range(10)) + list(range(100, 125))
    assert host.stop() == 0


def test_partitions_that_are_added_are_read_from_their_start_without_a_restart(
        database, topics, make_host):
    make_seen(database)
    topic = topics.create("events", 1)
    host = make_host(settings=settings_for(topics, database, topic, start="latest"),
                     handlers={"recorder": recorder()}).start()
    host.wait(lambda: (partition_of(host, f"{topic}/0") or {}).get("next") is not None, 30, "read")
    topics.produce(topic, records(0, 5))
    wait_count(host, database, 5)
    database.query("update event_handler_positions set created_at = now() - interval '1 hour'")
    topics.admin.create_partitions([NewPartitions(topic, 3)])[topic].result(30)
    producer = topics.producer()

    def written():  # before the host can know of them
        for partition in (1, 2):
            producer.produce(topic, envelope(100 + partition, aggregate_id="k"),
                             partition=partition)
        return True

    wait_for(lambda: len(topics.admin.list_topics(topic, 5).topics[topic].partitions) == 3, 30,
             "three partitions")
    written()
    assert producer.flush(30) == 0
    wait_count(host, database, 7, timeout=60)
    assert set(numbers(database)) == set(range(5)) | {101, 102}
    assert host.stop() == 0


def test_a_record_that_cannot_be_read_becomes_a_dead_letter_when_it_is_skipped(
        database, scratch, make_host):
    """Bytes that rot on the broker's disk: its log is ours to break here."""
    kafka = Kafka(scratch / f"kafka-rot{time.monotonic_ns()}").init().start()
    try:
        topics = Topics(kafka, "rot")
        make_seen(database)
        topic = topics.create("events", 1)
        producer = topics.producer(compression_type="gzip", linger_ms=0)
        for n in range(9):  # each in a batch of its own
            producer.produce(topic, envelope(n, aggregate_id="k", payload={"n": n, "pad": "x" * 500}))
            assert producer.flush(30) == 0
        log = next(Path(kafka.folder).glob(f"logs/{topic}-0/*.log"))
        rot(log, 4)
        host = make_host(settings=settings_for(topics, database, topic),
                         handlers={"recorder": recorder()}).start()
        name = f"{topic}/0"
        host.wait(lambda: trouble_of(host, name), 30, "the partition stands still")
        assert "offset 4" in trouble_of(host, name)
        wait_count(host, database, 4)
        assert host.ask("/readyz").status == 503
        cli(host, "sources", "move", name, "--to", "5", "--reason", "a bad disk")
        wait_count(host, database, 8)
        assert numbers(database) == [0, 1, 2, 3, 5, 6, 7, 8]
        letters = database.query("select handler, class, partition, place from event_dead_letters")
        assert letters == [("", "undecodable", name, 4)]
        assert given_up(database) == [("recorder", name, 4, 4, "a bad disk")]
        host.wait(lambda: host.ask("/readyz").status == 200, 10, "ready again")
        assert host.stop() == 0
    finally:
        kafka.stop()


def rot(log, offset):
    """Flip bytes of the compressed records of the batch that begins at `offset`."""
    data, at = bytearray(log.read_bytes()), 0
    while int.from_bytes(data[at:at + 8], "big") != offset:
        at += 12 + int.from_bytes(data[at + 8:at + 12], "big")
    end = at + 12 + int.from_bytes(data[at + 8:at + 12], "big")
    for i in range(at + 61, end):  # behind the batch's header
        data[i] ^= 0xA5
    with open(log, "r+b") as file:
        file.write(data)


def test_compaction_and_transaction_markers_leave_holes_that_nobody_waits_for(
        database, topics, make_host):
    make_seen(database)
    plain = topics.create("plain", 1)
    compacted = topics.create("compacted", 1, cleanup_policy="compact", segment_ms=100,
                              min_cleanable_dirty_ratio=0.01, max_compaction_lag_ms=500)
    host = make_host(settings=settings_for(topics, database, plain, compacted),
                     handlers={"recorder": recorder()}).start()
    producer = topics.producer(transactional_id=f"{topics.prefix}.tx")
    producer.init_transactions(30)
    for first, commit in ((0, True), (100, False), (10, True), (110, False)):
        producer.begin_transaction()
        for n in range(first, first + 5):
            producer.produce(plain, envelope(n, aggregate_id="k"), "k")
        producer.flush(30)
        (producer.commit_transaction if commit else producer.abort_transaction)(30)
    wait_count(host, database, 10)
    assert numbers(database) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    # 4 markers and 10 aborted records behind 10 that count: all is settled.
    host.wait(lambda: partition_of(host, f"{plain}/0")["positions"]["recorder"] == 24, 20,
              "the position is behind the last marker")
    assert host.stop() == 0

    for n in range(200, 240):  # of each of 4 keys the last stays
        topics.produce(compacted, [(f"k{n % 4}", envelope(n, aggregate_id=f"k{n % 4}"), None)])
        if n % 10 == 9:
            time.sleep(0.15)  # a segment ends by its age: nothing to wait for
    topics.produce(compacted, [("end", envelope(299, aggregate_id="end"), None)])
    kept = wait_for(lambda: compacted_to(topics, compacted, 20), 90, "the cleaner ran")
    host.start()
    wait_count(host, database, 10 + len(kept))
    assert sorted(numbers(database, "n >= 200")) == sorted(kept)
    host.wait(lambda: partition_of(host, f"{compacted}/0")["positions"].get("recorder") == 41, 20,
              "the position is at the end")
    assert host.stop() == 0


def compacted_to(topics, topic, most):
    """The numbers that are left, once they are few."""
    left = [json.loads(m.value())["payload"]["n"] for m in topics.read_all(topic)]
    return left if len(left) <= most else None


def test_a_host_that_was_fenced_says_so_and_comes_back(database, topics, make_host):
    """Two hosts with one instance id: the later one wins, and may go again."""
    make_seen(database)
    topic = topics.create("events", 1)
    settings = settings_for(topics, database, topic, instance_id="only-one")
    settings["outbox"] = {"enabled": "off"}  # the other host takes that over, too
    first = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    topics.produce(topic, records(0, 5))
    wait_count(first, database, 5)
    second = make_host(settings=settings, handlers={"recorder": recorder()}).start()
    first.wait(lambda: first.log_lines("Kafka consumer failed for good"), 30, "fenced")
    first.wait(lambda: any("failed for good" in r["why"]
                           for r in first.ask("/readyz").json()["reasons"]), 10, "it says so")
    second.stop()
    first.wait(lambda: first.log_lines("Kafka consumer opened again"), 60, "another try")
    assert not first.log_lines("left the group without its answer")
    topics.produce(topic, records(5, 10))
    wait_count(first, database, 10, timeout=90)
    assert numbers(database) == list(range(10))
    first.wait(lambda: first.ask("/readyz").json()["reasons"] == [], 30, "ready again")
    assert first.stop() == 0


def test_hosts_that_find_no_position_do_not_hold_the_same_token(database, topics, make_host):
    """One that was frozen before it could store its first row is fenced by whoever stored it
    instead: the first token is drawn, and taking the partition raises it."""
    make_seen(database)
    topic = topics.create("events", 4)
    epochs = "select partition, epoch from event_handler_positions where source = 'kafka'"
    host = make_host(settings=settings_for(topics, database, topic),
                     handlers={"recorder": recorder()}).start()
    topics.produce(topic, records(0, 10))
    wait_count(host, database, 10)
    first = dict(database.query(epochs))
    assert len(first) == len(set(first.values())) == 4
    assert host.stop() == 0
    host.start()
    topics.produce(topic, records(10, 20))
    wait_count(host, database, 20)
    assert dict(database.query(epochs)) == {part: epoch + 1 for part, epoch in first.items()}
    assert host.stop() == 0
