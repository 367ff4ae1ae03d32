"""A topic to its end, against a bare librdkafka consumer, in turns."""

import subprocess

from common import BUILD, HANDLERS, Bench, Host

PARTITIONS, KEYS, SIZE = 8, 100_000, 600


def main():
    with Bench("kafka", __doc__) as bench:
        events = bench.count(5_000_000)
        broker = bench.kafka()
        for topic, headers in (("plain", []), ("headers", ["headers"])):
            subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, topic, str(events),
                            str(PARTITIONS), str(KEYS), str(SIZE), *headers], check=True)

        def ours(topic):
            return lambda i: bench.drain(
                Host(bench.folder / f"{topic}{i}", {"three": HANDLERS["three"]},
                     brokers=broker.bootstrap, topics=[topic]), "three", events, broker)

        def limit(topic, *more):
            return lambda _: bench.limit("limit_consume", broker.bootstrap, topic, events, *more)

        for topic in ("plain", "headers"):
            pairs = bench.pairs(ours(topic), limit(topic))
            show(bench, topic, pairs)
        decoding = bench.pairs(lambda i: None, limit("plain", "three"))
        bench.row("bare consumer and simdjson", [p[1]["rate"] for p in decoding], "events/s")
        bench.row("  CPU", [p[1]["cpu_us"] for p in decoding], "µs/event")


def show(bench, topic, pairs):
    mine, bare = [p[0] for p in pairs], [p[1] for p in pairs]
    name = {"plain": "facts in the envelope", "headers": "facts in headers"}[topic]
    bench.raw[topic] = pairs
    bench.row(f"{name}: rate / bare consumer's", [a["rate"] / b["rate"] for a, b in pairs],
              "ratio", "≥ 0.65")
    bench.row("  moontide", [r["rate"] for r in mine], "events/s")
    bench.row("  bare consumer", [r["rate"] for r in bare], "events/s")
    bench.row("  CPU, host and worker", [r["cpu_us"] for r in mine], "µs/event", "≤ 1.9")
    bench.row("    of it the host", [r["host_us"] for r in mine], "µs/event")
    bench.row("  CPU, bare consumer", [r["cpu_us"] for r in bare], "µs/event")
    bench.row("  CPU, broker", [r["server_us"] for r in mine], "µs/event")
    bench.row("  peak memory, host", [r["host_mib"] for r in mine], "MiB", "≤ 64")
    bench.row("  peak memory, worker", [r["worker_mib"] for r in mine], "MiB")


main()
