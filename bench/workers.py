"""What a second worker adds: a handler that works for some 50 µs an event, in one
worker and in two, in turns. Keys stay with their worker."""

import subprocess

from common import BUILD, Bench, Host

BUSY = """return { subscribes = { "*" }, concurrency = 1000, start = "earliest",
  handle = function(event, ctx)
    local sum, total = 0, tonumber(event.payload.total)
    for i = 1, 8000 do sum = sum + i % total end
    if sum < 0 then error("impossible") end
  end }
"""


def main():
    with Bench("workers", __doc__) as bench:
        events = bench.count(300_000)
        broker = bench.kafka()
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                        "8", "5000", "600"], check=True)

        def run(name, workers):
            host = Host(bench.folder / name, {"busy": BUSY}, brokers=broker.bootstrap,
                        topics=["orders"], workers=workers)
            return bench.drain(host, "busy", events)

        pairs = bench.pairs(lambda i: run(f"two{i}", 2), lambda i: run(f"one{i}", 1))
        bench.raw["pairs"] = pairs
        bench.row("rate of two workers / of one, on two cores",
                  [a["rate"] / b["rate"] for a, b in pairs], "ratio")
        bench.row("  two workers", [a["rate"] for a, _ in pairs], "events/s")
        bench.row("  one", [b["rate"] for _, b in pairs], "events/s")
        bench.row("  CPU of the workers, two", [a["worker_us"] for a, _ in pairs], "µs/event")
        bench.row("  CPU of the worker, one", [b["worker_us"] for _, b in pairs], "µs/event")
        bench.row("  CPU of the host, two", [a["host_us"] for a, _ in pairs], "µs/event")


main()
