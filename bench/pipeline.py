"""Events from memory through the host's path, a ring, one worker and back."""

from common import Bench

SHAPES = [("three fields", "three", 800_000), ("the whole payload", "walk", 250_000),
          ("event.raw", "raw", 0), ("nothing", "none", 0)]


def main():
    with Bench("pipeline", __doc__) as bench:
        for what, handler, target in SHAPES:
            for headers in ("headers", ""):
                runs = bench.repeat(lambda i, w=handler, h=headers: bench.program(
                    "pipeline_bench", bench.count(1_000_000), w, *([h] if h else [])))
                name = f"{what}, facts in {headers or 'the envelope'}"
                bench.raw[name] = runs
                bench.row(name, [r["events"] / r["seconds"] for r in runs], "events/s",
                          f"≥ {target:,}" if target and headers else "")
                bench.row("  CPU", [r["host_us"] + r["worker_us"] for r in runs], "µs/event",
                          "≤ 1.5" if handler == "three" and headers else "")


main()
