"""Memory of host and worker with the four handlers: idle, and over five million
events, in which it must not grow."""

import statistics
import subprocess
import time

import load
from common import BUILD, ROOT, Bench, Host, resident_mib

HANDLERS = ("audit", "notification", "analytics", "compliance")


def resident(host):
    """Of the host and of its largest worker."""
    return (resident_mib(host.process.pid),
            max((resident_mib(pid) for pid in host.workers()), default=0))


def four(bench, broker, url, topic):
    sources = {name: (ROOT / f"handlers/{name}.lua").read_text() for name in HANDLERS}
    return Host(bench.folder / topic, sources, database=url, brokers=broker.bootstrap,
                topics=[topic])


def idle(host):
    host.start()
    try:
        time.sleep(3)
        return resident(host)
    finally:
        host.end(timeout=40)


def draining(host, events):
    """(events settled, host, worker), a few times a second."""
    samples, done = [], 0
    host.start()
    try:
        while done < events:
            time.sleep(0.2)
            done = host.metric("moontide_settled_total", 'handler="audit",how="ack"')
            samples.append((done, *resident(host)))
            if not host.running():
                raise RuntimeError("the host ended by itself")
    finally:
        host.end(timeout=40)
    return samples


def growth(samples, events, which):
    """From the second tenth, when all buffers have been used, to the last."""
    second, last = ([s[which] for s in samples if low <= s[0] / events <= high]
                    for low, high in ((0.1, 0.2), (0.9, 1)))
    return statistics.median(last) - statistics.median(second or last)


def main():
    with Bench("footprint", __doc__) as bench:
        events = bench.count(5_000_000)
        broker = bench.kafka()
        server = bench.postgres(shared_buffers="1GB", max_wal_size="8GB")
        server.query("create database footprint")
        url = server.url("footprint")
        Host(bench.folder / "setup", {}, database=url).cli("migrate", "up", "--ids", "text")
        load.make_topic(broker, "nothing")
        host, worker = idle(four(bench, broker, url, "nothing"))
        bench.row("host, idle", [host], "MiB", "≤ 20")
        bench.row("worker, four handlers, idle", [worker], "MiB", "≤ 15")
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                        "8", "5000", "600", "headers"], check=True)
        samples = draining(four(bench, broker, url, "orders"), events)
        bench.raw["samples"] = samples
        bench.row(f"host, most of {events:,} events", [max(s[1] for s in samples)], "MiB", "≤ 64")
        bench.row(f"worker, most of {events:,} events", [max(s[2] for s in samples)], "MiB",
                  "≤ 30")
        bench.row("host, growth", [growth(samples, events, 1)], "MiB", "≤ 1")
        bench.row("worker, growth", [growth(samples, events, 2)], "MiB", "≤ 1")


main()
