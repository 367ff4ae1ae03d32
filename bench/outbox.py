"""An outbox table to its end, against a bare keyset SELECT of the same columns."""

from common import HANDLERS, Bench, Host, fill_outbox


def wal(server):
    return int(server.query("select pg_current_wal_lsn() - '0/0'::pg_lsn")[0][0])


def main():
    with Bench("outbox", __doc__) as bench:
        events = bench.count(1_000_000)
        server = bench.postgres(shared_buffers="2GB", max_wal_size="8GB", autovacuum="off")
        server.query("create database bench")
        url = server.url("bench")
        Host(bench.folder / "setup", {}, database=url).cli("migrate", "up", "--ids", "text")
        fill_outbox(server, "bench", events)

        def ours(i):
            host = Host(bench.folder / f"host{i}", {f"three{i}": HANDLERS["three"]}, database=url)
            log = wal(server)
            result = bench.drain(host, f"three{i}", events, server)
            result["wal_bytes"] = (wal(server) - log) / events
            return result

        pairs = bench.pairs(ours, lambda _: bench.limit("limit_select", url, events, 2000,
                                                        server=server))
        mine, bare = [p[0] for p in pairs], [p[1] for p in pairs]
        bench.raw["pairs"] = pairs
        bench.row("rate / bare SELECT's", [a["rate"] / b["rate"] for a, b in pairs], "ratio",
                  "≥ 0.85")
        bench.row("  moontide", [r["rate"] for r in mine], "events/s")
        bench.row("  bare SELECT", [r["rate"] for r in bare], "events/s")
        bench.row("database's CPU / bare SELECT's", [a["server_us"] / b["server_us"] for a, b in pairs],
                  "ratio", "≤ 1.15")
        bench.row("  CPU, host and worker", [r["cpu_us"] for r in mine], "µs/event")
        bench.row("  CPU, database", [r["server_us"] for r in mine], "µs/event")
        bench.row("  peak memory, host", [r["host_mib"] for r in mine], "MiB")
        bench.row("WAL for reading", [r["wal_bytes"] for r in mine], "bytes/event", "≤ 0.01")


main()
