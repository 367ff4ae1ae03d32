"""The same work done by what a package registry has: every event decoded, three
fields read, counted, the position kept; in turns with moontide.

What a peer needs is fetched into .cache/peers at the first run; a peer whose
toolchain is not there is skipped. After each run the server is asked whether
the position stands behind exactly the events that there were.
"""

import itertools
import subprocess
import sys

from confluent_kafka import Consumer, TopicPartition

from common import BUILD, HANDLERS, ROOT, Bench, Host, fill_outbox

sys.path.insert(0, str(ROOT / "bench" / "peers"))

from toolchains import Missing, go, java, node, python  # noqa: E402

PARTITIONS, KEYS, SIZE = 8, 100_000, 600

numbers = itertools.count()


# --- Kafka -------------------------------------------------------------------------

class Topics:
    """A broker with a topic for each number of events that somebody reads."""

    OURS = 3_000_000

    def __init__(self, bench):
        self.bench, self.server = bench, bench.kafka()
        self.made = set()

    def topic(self, events):
        name = f"events-{events}"
        if name not in self.made:
            self.made.add(name)
            subprocess.run([str(BUILD / "bench/bench_fill"), self.server.bootstrap, name,
                            str(events), str(PARTITIONS), str(KEYS), str(SIZE)], check=True)
        return name

    def ours(self, folder, handler, events):
        return Host(folder, {handler: HANDLERS["three"]}, brokers=self.server.bootstrap,
                    topics=[self.topic(events)])


class Group:
    """A peer that reads a topic as a group of its own."""

    def __init__(self, topics, argv, events):
        self.brokers, self.topic, self.events = (
            topics.server.bootstrap, topics.topic(events), events)

    def begin(self, number):
        self.group = f"peer-{number}"
        return [self.brokers, self.topic, self.group, self.events]

    def committed(self):
        consumer = Consumer({"bootstrap.servers": self.brokers, "group.id": self.group})
        places = consumer.committed([TopicPartition(self.topic, p) for p in range(PARTITIONS)],
                                    timeout=10)
        consumer.close()
        return sum(max(0, place.offset) for place in places)


# --- the outbox --------------------------------------------------------------------

class Outboxes:
    """A server with a database for ours and one for each peer."""

    OURS = 500_000
    A_TRANSACTION = 1000  # events; the fewer there are, the slower Debezium is

    def __init__(self, bench):
        self.bench = bench
        self.server = bench.postgres(shared_buffers="2GB", max_wal_size="8GB", autovacuum="off",
                                     wal_level="logical")
        self.made = set()

    def database(self, name):
        self.server.query(f"create database {name}")
        Host(self.bench.folder / f"{name}-setup", {}, database=self.server.url(name)).cli(
            "migrate", "up", "--ids", "text")
        return self.server.url(name)

    def fill(self, name, events):
        fill_outbox(self.server, name, events, self.A_TRANSACTION)

    def ours(self, folder, handler, events):
        if "ours" not in self.made:
            self.made.add("ours")
            self.database("ours")
            self.fill("ours", events)
        return Host(folder, {handler: HANDLERS["three"]}, database=self.server.url("ours"))


class Slot:
    """Debezium decodes the log: of all that was written since its slot was made,
    of which each run gets a copy."""

    def __init__(self, outboxes, argv, events):
        self.server, self.events, self.folder = outboxes.server, events, outboxes.bench.folder
        outboxes.database("debezium")
        self.query("create publication peers for table domain_events"
                   " with (publish = 'insert', publish_via_partition_root)")
        self.query("select pg_create_logical_replication_slot('peers', 'pgoutput')")
        outboxes.fill("debezium", events)

    def query(self, *sql):
        return self.server.query(*sql, database="debezium")

    def begin(self, number):
        self.slot = f"peer_{number}"
        self.query("select pg_copy_logical_replication_slot('peers', %s)", (self.slot,))
        return [self.server.port, "debezium", self.slot, self.folder / f"{self.slot}.offsets",
                self.events]

    def committed(self):
        """Debezium lets the slot pass a transaction when a later one has come, so that
        the last one is still there."""
        left = self.query("""select count(*) from pg_logical_slot_peek_binary_changes(%s, null,
            null, 'proto_version', '1', 'publication_names', 'peers')
            where get_byte(data, 0) = ascii('I')""", (self.slot,))[0][0]
        self.query("select pg_drop_replication_slot(%s)", (self.slot,))
        last = (self.events - 1) % Outboxes.A_TRANSACTION + 1
        return self.events - left + last


class OwnTable:
    """A peer with a table of its own that it makes by `init`; filled from an outbox
    with the same events."""

    def __init__(self, outboxes, argv, events):
        self.server, self.events = outboxes.server, events
        self.url = outboxes.database(self.DATABASE)
        outboxes.fill(self.DATABASE, events)
        subprocess.run([str(a) for a in [*argv, self.url, "events", "init"]], check=True)

    def query(self, sql):
        return self.server.query(sql, database=self.DATABASE)

    def begin(self, number):
        self.query(self.RESET)
        return [self.url, "events", self.events]

    def committed(self):
        return self.query(self.COMMITTED)[0][0]


class WatermillTable(OwnTable):
    DATABASE = "watermill"
    RESET = "truncate watermill_offsets_events"
    COMMITTED = """select count(*) from watermill_events m, watermill_offsets_events o
        where (m.transaction_id, m."offset") <= (o.last_processed_transaction_id, o.offset_acked)"""

    def __init__(self, *args):
        super().__init__(*args)
        self.query("""insert into watermill_events (uuid, payload, metadata, transaction_id)
            select id, event_data, json_build_object('type', event_type), xid
            from domain_events order by seq""")
        self.query("vacuum analyze watermill_events")


class Queue(OwnTable):
    """pg-boss changes each row: every run gets them anew."""

    DATABASE = "pgboss"
    RESET = """truncate pgboss.job;
        insert into pgboss.job (name, data)
        select 'events', jsonb_build_object('type', event_type, 'payload', event_data)
        from domain_events order by seq;
        analyze pgboss.job"""
    COMMITTED = "select count(*) from pgboss.job where state = 'completed'"


# --- running -------------------------------------------------------------------------

KAFKA = {
    "franz-go": (Group, go, "franz-go", 2_000_000),
    "watermill-kafka": (Group, go, "watermill-kafka", 1_000_000),
    "kafkajs": (Group, node, "kafkajs.js", 1_000_000),
    "confluent-kafka": (Group, python, "confluent.py", 2_000_000),
}
OUTBOX = {
    "debezium": (Slot, java, "Debezium", 200_000),
    "watermill-sql": (WatermillTable, go, "watermill-sql", 200_000),
    "pg-boss": (Queue, node, "pgboss.js", 200_000),
}


def ready(bench, peers):
    """Those of the peers that are wanted and can be had, with what starts each."""
    for name, (work, toolchain, program, events) in peers.items():
        if name not in (bench.args.only or peers):
            continue
        try:
            yield name, work, toolchain(program), bench.count(events)
        except Missing as why:
            print(f"  {name}: skipped, {why}")
            bench.raw[name] = {"skipped": str(why)}


def measure(bench, source, name, work, argv, events):
    peer, ours = work(source, argv, events), max(200_000, bench.count(source.OURS))

    def our_run(_):
        handler = f"three{next(numbers)}"
        return bench.drain(source.ours(bench.folder / handler, handler, ours), handler, ours,
                           source.server)

    def peer_run(_):
        result = bench.limit(*argv, *peer.begin(next(numbers)), server=source.server)
        found = (result["events"], peer.committed())
        if found != (events, events):
            raise RuntimeError(f"{name}: {found} of {events} events handled and committed")
        return result

    pairs = bench.pairs(our_run, peer_run)
    bench.raw[name] = pairs
    show(bench, name, pairs)


def show(bench, name, pairs):
    mine, peers = [p[0] for p in pairs], [p[1] for p in pairs]
    bench.row(f"rate / {name}'s", [a["rate"] / b["rate"] for a, b in pairs], "ratio")
    for what, key, unit in (("", "rate", "events/s"), ("CPU, ", "cpu_us", "µs/event"),
                            ("CPU of the server, ", "server_us", "µs/event")):
        bench.row(f"  {what}moontide", [r[key] for r in mine], unit)
        bench.row(f"  {what}{name}", [r[key] for r in peers], unit)
    bench.row("  peak memory, moontide", [r["host_mib"] + r["worker_mib"] for r in mine], "MiB")
    bench.row(f"  peak memory, {name}", [r["peak_mib"] for r in peers], "MiB")


def options(parser):
    parser.add_argument("--only", action="append", choices=[*KAFKA, *OUTBOX],
                        help="this peer, and others that are named so (all)")


def main():
    with Bench("peers", __doc__, pairs=3, options=options) as bench:
        for peers, start in ((KAFKA, Topics), (OUTBOX, Outboxes)):
            found = list(ready(bench, peers))
            source = start(bench) if found else None
            for name, work, argv, events in found:
                measure(bench, source, name, work, argv, events)


main()
