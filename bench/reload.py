"""Throughput while the handler is reloaded twice a second, beside the same run
without a reload."""

import subprocess
import threading

from common import BUILD, HANDLERS, Bench, Host


def main():
    with Bench("reload", __doc__) as bench:
        events = bench.count(4_000_000)
        broker = bench.kafka()
        subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                        "8", "100000", "600"], check=True)

        def run(name, every):
            host = Host(bench.folder / name, {"three": HANDLERS["three"]},
                        brokers=broker.bootstrap, topics=["orders"])
            file, over, saves = host.folder / "handlers/three.lua", threading.Event(), []

            def save():
                while not over.wait(every):
                    saves.append(len(saves))
                    file.write_text(HANDLERS["three"] + f"-- {len(saves)}\n")

            host.start()
            saver = threading.Thread(target=save)
            if every:
                saver.start()
            try:
                result = host.drain_all("three", events)
                result["reloads"] = host.metric("moontide_reloads_total", 'handler="three"')
            finally:
                over.set()
                if every:
                    saver.join()
                host.end(timeout=40)
            return result

        pairs = bench.pairs(lambda i: run(f"reload{i}", 0.5), lambda i: run(f"calm{i}", 0))
        bench.raw["pairs"] = pairs
        bench.row("rate / without a reload", [a["rate"] / b["rate"] for a, b in pairs], "ratio",
                  "≥ 0.97")
        bench.row("  with", [a["rate"] for a, _ in pairs], "events/s")
        bench.row("  without", [b["rate"] for _, b in pairs], "events/s")
        bench.row("  reloads", [a["reloads"] for a, _ in pairs])


main()
