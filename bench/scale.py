"""The cost of an event as things grow: CPU of host and worker, beside the same run
with little of it. From memory, so that nothing else moves; what a backlog costs, from
a topic and from a table.
"""

import statistics
import subprocess

from common import BUILD, HANDLERS, Bench, Host, fill_outbox, wait_for

BASE = ("three", "headers", "keys=5000", "partitions=8")
GROWN = [
    ("10 handlers that do not match", ("others=10",)),
    ("100 handlers that do not match", ("others=100",)),
    ("1,000 handlers that do not match", ("others=1000",)),
    ("10 types, each with its handler", ("types=10",)),
    ("100 types, each with its handler", ("types=100",)),
    ("1,000 types, each with its handler", ("types=1000",)),
    ("1 key", ("keys=1",)),
    ("100 keys", ("keys=100",)),
    ("1,000,000 keys", ("keys=1000000",)),
    ("1 partition", ("partitions=1",)),
    ("64 partitions", ("partitions=64",)),
]
FEW = 500_000  # events, of the runs with no backlog


def cost(bench, events, *more):
    run = bench.program("pipeline_bench", events, *BASE, *more)
    return run["host_us"] + run["worker_us"]


def compare(bench, what, much, little):
    pairs = bench.pairs(much, little)
    bench.raw[what] = pairs
    bench.row(f"{what} / as usual", [a / b for a, b in pairs], "ratio", "≤ 1.10")


def from_memory(bench):
    events = bench.count(1_000_000)
    for what, more in GROWN:
        compare(bench, what, lambda _, m=more: cost(bench, events, *m),
                lambda _: cost(bench, events))
    # Each handler that takes the event costs the same: beside one that has it alone.
    costs = {n: statistics.median(cost(bench, events, f"handlers={n}")
                                  for _ in range(bench.args.pairs)) for n in (1, 2, 4, 8)}
    bench.raw["handlers"] = costs
    for n in (2, 4, 8):
        bench.row(f"a handler, of {n} with the same event / alone", [costs[n] / n / costs[1]],
                  "ratio", "≤ 1.00")
    bench.row("a handler, alone", [costs[1]], "µs")


def topic_backlog(bench):
    """The same handler to the end of a topic with few events and of one with many."""
    broker = bench.kafka()
    sizes = {"few": bench.count(FEW), "many": bench.count(10_000_000)}
    for topic, events in sizes.items():
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, topic, str(events),
                        "8", "100000", "600"], check=True)

    def run(topic):
        return lambda i: bench.drain(
            Host(bench.folder / f"{topic}{i}", {"three": HANDLERS["three"]},
                 brokers=broker.bootstrap, topics=[topic]), "three", sizes[topic])["cpu_us"]

    compare(bench, f"a backlog of {sizes['many']:,} events in Kafka", run("many"), run("few"))


def table_backlog(bench):
    """As many new rows each time, behind none and behind millions of them."""
    server = bench.postgres(shared_buffers="2GB", max_wal_size="8GB")
    before = bench.count(5_000_000)
    for name in ("short", "long"):
        server.query(f"create database {name}")
        Host(bench.folder / f"setup-{name}", {}, database=server.url(name)).cli(
            "migrate", "up", "--ids", "text")
    fill_outbox(server, "long", before)

    def short(i):  # one that nothing was written to: rows cannot be taken out
        server.query(f"create database short{i} template short")
        return after_position(bench, server, f"short{i}", f"short{i}")

    compare(bench, f"{before:,} rows of an outbox before the position",
            lambda i: after_position(bench, server, "long", f"long{i}"), short)


def after_position(bench, server, database, name):
    """A handler begins where the table ends now, and has what comes after that."""
    now = HANDLERS["three"].replace('start = "earliest"', 'start = "now"')
    host, few = Host(bench.folder / name, {name: now}, database=server.url(database)), \
        bench.count(FEW)
    host.start()
    wait_for(lambda: server.query("select 1 from event_handler_positions where handler_name = %s",
                                  (name,), database=database), 30, "a position")
    host.end(timeout=40)
    fill_outbox(server, database, few)
    return bench.drain(host, name, few)["cpu_us"]


def main():
    with Bench("scale", __doc__) as bench:
        from_memory(bench)
        topic_backlog(bench)
        table_backlog(bench)


main()
