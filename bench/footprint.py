"""Memory of host and worker with the four handlers: idle, and over a topic."""

import subprocess
import time

from common import BUILD, ROOT, Bench, Host, resident_mib

HANDLERS = ("audit", "notification", "analytics", "compliance")


def main():
    with Bench("footprint", __doc__) as bench:
        events = bench.count(300_000)
        broker = bench.kafka()
        server = bench.postgres(shared_buffers="1GB", max_wal_size="8GB")
        server.query("create database footprint")
        url = server.url("footprint")
        Host(bench.folder / "setup", {}, database=url).cli("migrate", "up", "--ids", "text")
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                        "8", "5000", "600", "headers"], check=True)
        host = Host(bench.folder / "host",
                    {name: (ROOT / f"handlers/{name}.lua").read_text() for name in HANDLERS},
                    database=url, brokers=broker.bootstrap, topics=["orders"])
        host.start()
        samples = []
        try:
            while True:
                done = host.metric("moontide_settled_total", 'handler="audit",how="ack"')
                workers = [resident_mib(pid) for pid in host.workers()]
                samples.append((done, resident_mib(host.process.pid), max(workers or [0])))
                if done >= events:
                    break
                time.sleep(0.2)
        finally:
            host.end(timeout=40)
        bench.raw["samples"] = samples
        half = [s for s in samples if s[0] >= events / 2]
        bench.row("host, while it drains", [s[1] for s in half], "MiB", "≤ 64")
        bench.row("worker, four handlers", [s[2] for s in half], "MiB", "≤ 30")
        bench.row("host, growth over the last half", [half[-1][1] - half[0][1]], "MiB", "≤ 1")
        bench.row("worker, growth over the last half", [half[-1][2] - half[0][2]], "MiB", "≤ 1")


main()
