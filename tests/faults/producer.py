#!/usr/bin/python3
"""Writes events and keeps the journal of them: the scenarios' own producer.

It is a process of its own, so that nothing that happens to the host or to the
test delays or hides what was acknowledged. Per key n = 0, 1, 2 … in the order
of the partition, or of the commits. Ends at --count events, or at SIGTERM.
"""

import argparse
import json
import random
import signal
import sys
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from journal import Writer  # noqa: E402


def key_of(number):
    return f"00000000-0000-4000-8000-{number:012d}"


class Pace:
    """How many events there may be by now; the threads share it."""

    def __init__(self, rate, count):
        self.rate, self.left = rate, count if count > 0 else float("inf")
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.start, self.taken = time.monotonic(), 0

    def take(self, n):
        """Waits until n more are due; how many may be written, 0 at the end."""
        with self.lock:
            n = int(min(n, self.left))
            self.left -= n
            self.taken += n
            due = self.start + self.taken / self.rate if self.rate else 0
        self.ended.wait(max(0, due - time.monotonic()))
        return 0 if self.ended.is_set() else n


def envelope(args, id, key, n, at):
    return json.dumps({
        "id": id, "eventType": args.type, "eventVersion": 1, "aggregateType": args.aggregate,
        "aggregateId": key, "occurredAt": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
        + f".{int(at % 1 * 1e6):06d}Z", "payload": {"n": n, "note": args.note}, "metadata": {}})


def into_kafka(args, pace, journal):
    """One idempotent producer; an answer that does not come leaves `unknown`."""
    from confluent_kafka import Producer

    rng, numbers = random.Random(args.seed), defaultdict(int)
    producer = Producer({"bootstrap.servers": args.to, "enable.idempotence": args.idempotent,
                         "acks": "all", "linger.ms": 5, "message.timeout.ms": 300000,
                         "reconnect.backoff.max.ms": 500, "log_level": 2,
                         "queue.buffering.max.messages": 50000})

    def written(id, key, n, at):
        return lambda err, _: journal.note("unknown" if err else "acked", id, key, n, at)

    while pace.take(1):
        key = key_of(args.first_key + rng.randrange(args.keys))
        n, id, at = numbers[key], str(uuid.UUID(int=rng.getrandbits(128), version=4)), time.time()
        numbers[key] += 1
        while True:
            try:
                producer.produce(args.topic, key=key, value=envelope(args, id, key, n, at),
                                 on_delivery=written(id, key, n, at))
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    return producer.flush(300)


class Outbox:
    """Connections that publish. Within a key numbers rise in the order of the
    commits: a lock per key is held over publish_event() and COMMIT, as an
    application holds a row lock of its own."""

    def __init__(self, args, pace, journal):
        self.args, self.pace, self.journal = args, pace, journal
        self.locks = [threading.Lock() for _ in range(args.keys)]
        self.numbers = [0] * args.keys

    def run(self, index):
        import psycopg2

        rng, connection = random.Random(f"{self.args.seed}/{index}"), None
        while True:
            n = self.pace.take(rng.randint(1, min(self.args.per_commit, self.args.keys)))
            while n:
                try:
                    connection = connection or psycopg2.connect(self.args.to)
                    n -= self.transaction(connection, rng, n)
                except psycopg2.Error as fault:
                    print("producer:", str(fault).strip(), file=sys.stderr, flush=True)
                    connection = None
                    time.sleep(0.05)  # the pace of asking again, not a wait for anything
                if self.pace.ended.is_set():
                    return
            if self.pace.ended.is_set() or self.pace.left <= 0:
                return

    def transaction(self, connection, rng, count):
        """How many of the `count` events are settled: none after a rollback."""
        chosen = sorted(rng.sample(range(self.args.keys), count))
        for number in chosen:
            self.locks[number].acquire()
        try:
            written, at = [], time.time()
            with connection.cursor() as cursor:
                for number in chosen:
                    key, n = key_of(self.args.first_key + number), self.numbers[number]
                    cursor.execute("select publish_event(%s, %s, %s, %s)",
                                   (self.args.type, self.args.aggregate, key,
                                    json.dumps({"n": n, "note": self.args.note})))
                    written.append((cursor.fetchone()[0], key, n, at))
                if rng.random() < self.args.late:  # others overtake in the meantime
                    cursor.execute("select pg_sleep(%s)", (rng.random() * 0.05,))
            if rng.random() < self.args.rollbacks:
                connection.rollback()
                return 0
            self.commit(connection, chosen, written)
            return len(written)
        finally:
            for number in chosen:
                self.locks[number].release()

    def commit(self, connection, chosen, written):
        state = "unknown"
        try:
            connection.commit()
            state = "acked"
        finally:
            for number in chosen:
                self.numbers[number] += 1
            for event in written:
                self.journal.note(state, *event)


def into_outbox(args, pace, journal):
    outbox = Outbox(args, pace, journal)
    threads = [threading.Thread(target=outbox.run, args=(i,)) for i in range(args.writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("into", choices=("kafka", "outbox"))
    parser.add_argument("--to", required=True, help="bootstrap servers, or a database's URL")
    parser.add_argument("--journal", required=True)
    parser.add_argument("--topic")
    parser.add_argument("--rate", type=float, default=0, help="events a second; 0: as fast as can be")
    parser.add_argument("--count", type=int, default=0, help="0: until SIGTERM")
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--first-key", type=int, default=0)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--type", default="Happened")
    parser.add_argument("--aggregate", default="Thing")
    parser.add_argument("--note", default="")
    parser.add_argument("--idempotent", type=int, default=1)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--per-commit", type=int, default=5)
    parser.add_argument("--rollbacks", type=float, default=0)
    parser.add_argument("--late", type=float, default=0)
    args = parser.parse_args()

    pace = Pace(args.rate, args.count)
    signal.signal(signal.SIGTERM, lambda *_: pace.ended.set())
    journal = Writer(args.journal)
    print("ready", flush=True)
    try:
        left = (into_kafka if args.into == "kafka" else into_outbox)(args, pace, journal)
    finally:
        journal.close()
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
