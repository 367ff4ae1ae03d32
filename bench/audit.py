"""The audit trail, exactly once from Kafka, against such rows on one connection
without any promise: by plain COPY, and by INSERT of arrays with inbox rows."""

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

        def limit(how, i):
            name = f"{how}{i}"
            result = bench.limit("limit_insert", fresh(name), events,
                                 *([how] if how == "unnest" else []), server=server)
            assert rows(name) == (events, events), rows(name)
            server.query(f"drop database {name}")
            return result

        def limits(i):
            return {how: limit(how, i) for how in ("copy", "unnest")}

        pairs = bench.pairs(ours, limits)
        bench.raw["pairs"] = pairs
        show(bench, [p[0] for p in pairs], [p[1]["copy"] for p in pairs],
             [p[1]["unnest"] for p in pairs])


def show(bench, mine, copy, unnest):
    bench.row("rate / plain COPY's", [a["rate"] / b["rate"] for a, b in zip(mine, copy)], "ratio",
              "≥ 0.7")
    bench.row("  moontide, exactly once", [r["rate"] for r in mine], "events/s")
    bench.row("  plain COPY", [r["rate"] for r in copy], "events/s")
    bench.row("  arrays, with inbox rows", [r["rate"] for r in unnest], "events/s")
    bench.row("rate / arrays with inbox rows", [a["rate"] / b["rate"] for a, b in
                                                zip(mine, unnest)], "ratio")
    bench.row("  CPU, host and worker", [r["cpu_us"] for r in mine], "µs/event")
    bench.row("  CPU, database", [r["server_us"] for r in mine], "µs/event")
    bench.row("  CPU, database, plain COPY", [r["server_us"] for r in copy], "µs/event")
    bench.row("  CPU, database, arrays", [r["server_us"] for r in unnest], "µs/event")


main()
