"""The cost of an event as things grow: CPU of host and worker, beside the same
run with little of it. From memory, so that nothing else moves."""

import statistics

from common import Bench

BASE = ("three", "headers", "keys=5000", "partitions=8")
GROWN = [
    ("1,000 handlers that do not match", ("others=1000",)),
    ("1 key", ("keys=1",)),
    ("100 keys", ("keys=100",)),
    ("1,000,000 keys", ("keys=1000000",)),
    ("1 partition", ("partitions=1",)),
    ("64 partitions", ("partitions=64",)),
]


def main():
    with Bench("scale", __doc__) as bench:
        events = bench.count(1_000_000)

        def cost(*more):
            run = bench.program("pipeline_bench", events, *BASE, *more)
            return run["host_us"] + run["worker_us"]

        for what, more in GROWN:
            pairs = bench.pairs(lambda _, m=more: cost(*m), lambda _: cost())
            bench.raw[what] = pairs
            bench.row(f"{what} / as usual", [a / b for a, b in pairs], "ratio", "≤ 1.10")
        # Each handler that takes the event costs the same: a line through 1, 2, 4, 8.
        costs = {n: statistics.median(cost(f"handlers={n}") for _ in range(bench.args.pairs))
                 for n in (1, 2, 4, 8)}
        bench.raw["handlers"] = costs
        for n in (2, 4, 8):
            bench.row(f"a handler, of {n} with the same event", [costs[n] / n], "µs")
        bench.row("a handler, alone", [costs[1]], "µs")


main()
