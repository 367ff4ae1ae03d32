"""What a reload costs while a topic flows: throughput while the handler is reloaded
twice a second, beside the same run without; and the longest pause of a lane.

For the pause, events come evenly at a rate that is far from full, and the handler
notes when it had which key. Of each half second, a reload in it or none, the longest
time between two events of one key counts.
"""

import re
import subprocess
import threading
import time
from contextlib import contextmanager

import load
from common import BUILD, HANDLERS, Bench, Host, percentile

RATE, LANES, EVERY = 20_000, 10, 0.5  # a lane has an event each half millisecond

# A version tells what it has left when it is unloaded.
NOTING = """local log, time = require "moontide.log", require "moontide.time"
local words, base = {}, nil
local function tell()
  if base then log.info("noted", { base = ("%.0f"):format(base), at = table.concat(words, ",") }) end
  words, base = {}, nil
end
return { subscribes = { "*" }, concurrency = 1000, start = "earliest",
  handle = function(event, ctx)
    local now = time.unix() * 1e6
    base = base or now
    words[#words + 1] = event.aggregate_id .. ":" .. ("%.0f"):format(now - base)
    if #words == 100 then tell() end
  end,
  on_unload = tell }
"""


@contextmanager
def saving(file, text, every):
    """Saves the file again and again; gives the times (µs) at which it did."""
    over, saves = threading.Event(), []

    def save():
        while not over.wait(every):
            saves.append(time.time_ns() // 1000)
            file.write_text(f"{text}-- {len(saves)}\n")

    saver = threading.Thread(target=save)
    saver.start()
    try:
        yield saves
    finally:
        over.set()
        saver.join()


@contextmanager
def calm(*_):
    yield []


def drained(bench, broker, name, events, disturbed):
    host = Host(bench.folder / name, {"three": HANDLERS["three"]}, brokers=broker.bootstrap,
                topics=["orders"])
    host.start()
    try:
        with disturbed(host.folder / "handlers/three.lua", HANDLERS["three"], EVERY):
            result = host.drain_all("three", events)
            result["reloads"] = host.metric("moontide_reloads_total", 'handler="three"')
        return result
    finally:
        host.end(timeout=40)


def throughput(bench, broker):
    events = bench.count(4_000_000)
    subprocess.run([str(BUILD / "bench/bench_fill"), broker.bootstrap, "orders", str(events),
                    "8", "100000", "600"], check=True)
    pairs = bench.pairs(lambda i: drained(bench, broker, f"reload{i}", events, saving),
                        lambda i: drained(bench, broker, f"calm{i}", events, calm))
    bench.raw["pairs"] = pairs
    bench.row("rate / without a reload", [a["rate"] / b["rate"] for a, b in pairs], "ratio",
              "≥ 0.97")
    bench.row("  with", [a["rate"] for a, _ in pairs], "events/s")
    bench.row("  without", [b["rate"] for _, b in pairs], "events/s")
    bench.row("  reloads", [a["reloads"] for a, _ in pairs])


def noted(host):
    """key → when it was had, µs"""
    lanes = {}
    for line in re.findall(r" noted .*", host.log.read_text(errors="replace")):
        base, words = (re.search(rf' {name}="?([^" ]+)', line)[1] for name in ("base", "at"))
        for key, after in (word.split(":") for word in words.split(",")):
            lanes.setdefault(key, []).append(int(base) + int(after))
    return lanes


def longest_gaps(lanes, start, end):
    """ms, of each EVERY between the two times."""
    longest = [0] * int((end - start) / 1e6 / EVERY)
    for times in lanes.values():
        times.sort()
        for before, after in zip(times, times[1:]):
            window = int((before - start) / 1e6 / EVERY)
            if 0 <= window < len(longest):
                longest[window] = max(longest[window], (after - before) / 1000)
    return longest


def gaps(bench, broker, name, disturbed):
    """The longest gaps of a minute, but for its first and last seconds."""
    seconds = max(10, 60 * bench.args.scale)
    load.make_topic(broker, name, partitions=2)
    host = Host(bench.folder / name, {"noting": NOTING}, brokers=broker.bootstrap, topics=[name])
    host.start()
    try:
        with disturbed(host.folder / "handlers/noting.lua", NOTING, EVERY):
            began, late = load.evenly(host, RATE, load.WARM_UP + seconds,
                                      ("kafka", broker.bootstrap, name, "0"), LANES)
    finally:
        host.end(timeout=40)
    start, lanes = (began + load.WARM_UP) * 1e6, noted(host)
    noted_of_sent = sum(map(len, lanes.values())) / int(RATE * (load.WARM_UP + seconds))
    return longest_gaps(lanes, start, start + (seconds - 1) * 1e6), late, noted_of_sent


def pause(bench, broker):
    with_it, late, noted_of_sent = gaps(bench, broker, "disturbed", saving)
    without, *_ = gaps(bench, broker, "undisturbed", calm)
    bench.raw["gaps"] = {"reload": with_it, "calm": without}
    p99, p99_calm = percentile(with_it, 0.99), percentile(without, 0.99)
    bench.row("longest pause of a lane by a reload, p99", [max(0, p99 - p99_calm)], "ms", "≤ 2")
    bench.row("  longest gap of a lane with a reload, p99", [p99], "ms")
    bench.row("  without", [p99_calm], "ms")
    bench.row("  longest gap with a reload", with_it, "ms")
    bench.row("  without", without, "ms")
    bench.row("  noted / sent", [noted_of_sent], "ratio")
    bench.row("  the sender behind its plan, at most", [late], "ms")


def main():
    with Bench("reload", __doc__) as bench:
        broker = bench.kafka()
        throughput(bench, broker)
        pause(bench, broker)


main()
