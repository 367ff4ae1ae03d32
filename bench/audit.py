"""The audit trail, exactly once from Kafka, against plain COPY of such rows on one
connection without any promise."""

import subprocess

from common import BUILD, ROOT, Bench, Host


def main():
    with Bench("audit", __doc__) as bench:
        events = bench.count(300_000)
        broker = bench.kafka()
        server = bench.postgres(shared_buffers="1GB", max_wal_size="8GB", autovacuum="off")
        server.query("create database migrated")
        Host(bench.folder / "setup", {}, database=server.url("migrated")).cli(
            "migrate", "up", "--ids", "text")
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                        "8", "5000", "600", "headers"], check=True)
        source = (ROOT / "handlers/audit.lua").read_text()

        def fresh(name):
            server.query(f"create database {name} template migrated")
            return server.url(name)

        def rows(name):
            return server.query("select count(*), count(distinct event_id) from event_audit_log",
                                database=name)[0]

        def ours(i):
            name = f"ours{i}"
            host = Host(bench.folder / name, {"audit": source}, database=fresh(name),
                        brokers=broker.bootstrap, topics=["orders"])
            result = bench.drain(host, "audit", events, server)
            assert rows(name) == (events, events), rows(name)
            server.query(f"drop database {name}")
            return result

        def limit(i):
            name = f"limit{i}"
            result = bench.limit("limit_insert", fresh(name), events, server=server)
            server.query(f"drop database {name}")
            return result

        pairs = bench.pairs(ours, limit)
        mine, bare = [p[0] for p in pairs], [p[1] for p in pairs]
        bench.raw["pairs"] = pairs
        bench.row("rate / plain COPY's", [a["rate"] / b["rate"] for a, b in pairs], "ratio",
                  "≥ 0.7")
        bench.row("  moontide, exactly once", [r["rate"] for r in mine], "events/s")
        bench.row("  plain COPY", [r["rate"] for r in bare], "events/s")
        bench.row("  CPU, host and worker", [r["cpu_us"] for r in mine], "µs/event")
        bench.row("  CPU, database", [r["server_us"] for r in mine], "µs/event")
        bench.row("  CPU, database, plain COPY", [r["server_us"] for r in bare], "µs/event")


main()
