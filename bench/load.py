"""Latency at half the load that sender, server and host reach together here.

First as many events as go are sent while the host takes them: what is settled a
second then is the whole. The sender stamps each event with the time it is sent, the
handler counts how long it took, in steps of 2 %, and tells when it is unloaded: a
line in the log for each event would be the larger part of the load.
"""

import json
import math
import re
import subprocess
import time
from collections import Counter

from common import BUILD, wait_for
from confluent_kafka.admin import AdminClient, NewTopic

WARM_UP = 3  # seconds that do not count: a producer finds its brokers

HANDLER = """local log, time = require "moontide.log", require "moontide.time"
local seconds = {}
return { subscribes = { "*" }, concurrency = 1000, start = "earliest",
  handle = function(event, ctx)
    local p, sent = event.payload, event.occurred_at_us
    if p.number == nil or p.total == nil or p.currency == nil then
      error("a field is missing")
    end
    local step = math.floor(50 * math.log(math.max(1, time.unix() * 1e6 - sent)))
    local second = math.floor(sent / 1e6)
    local counts = seconds[second] or {}
    seconds[second] = counts
    counts[step] = (counts[step] or 0) + 1
  end,
  on_unload = function(ctx)
    for second, counts in pairs(seconds) do
      local words = {}
      local function tell() -- a line of the log has an end
        log.info("took", { second = second, counts = table.concat(words, ",") })
        words = {}
      end
      for step, n in pairs(counts) do
        words[#words + 1] = step .. ":" .. n
        if #words == 100 then tell() end
      end
      if #words > 0 then tell() end
    end
  end }
"""


def make_topic(broker, name, partitions=8):
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    for made in admin.create_topics([NewTopic(name, partitions, 1)]).values():
        made.result()


def sending(rate, events, keys, *sink):
    """bench_send, as a process."""
    argv = [BUILD / "bench/bench_send", rate, events, keys, *sink]
    return subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, text=True)


def settled(host):
    return host.metric("moontide_settled_total", 'how="ack"')


def together(host, events, sink):
    """Events a second, from the first settled to the last."""
    with sending(0, events, 1000, *sink):
        first = wait_for(lambda: settled(host), 60, "an event")
        began = time.monotonic()
        wait_for(lambda: settled(host) >= events, 600, f"{events} events")
    return (events - first) / (time.monotonic() - began)


def evenly(host, rate, seconds, sink, keys=1000):
    """When the sending began, and by how much it fell behind its plan, ms; all of it
    is settled now."""
    events, before, began = int(rate * seconds), settled(host), time.time()
    with sending(rate, events, keys, *sink) as sender:
        late = json.load(sender.stdout)["late_ms"]  # nobody asks the host before
    wait_for(lambda: settled(host) >= before + events, 60 + seconds, f"{events} events")
    return began, late


def told(host):
    """second → how many took which step."""
    seconds = {}
    for line in re.findall(r" took .*", host.log.read_text(errors="replace")):
        second, counts = (re.search(rf' {name}="?([\d:,-]+)', line) for name in
                          ("second", "counts"))
        seconds.setdefault(int(second[1]), Counter()).update(
            {int(s): int(n) for s, n in (pair.split(":") for pair in counts[1].split(","))})
    return seconds


def percentile_of(counts, p):
    """ms"""
    left = p * sum(counts.values())
    for step, n in sorted(counts.items()):
        left -= n
        if left <= 0:
            break
    return math.exp((step + 0.5) / 50) / 1000


def over(seconds, start, end):
    return sum((c for second, c in seconds.items() if start <= second < end), Counter())


def at_half(bench, name, host, sink, events):
    """A minute of it, with what the first and the last quarter of it took; gives the
    rate."""
    length = max(8, 60 * bench.args.scale)
    host.start()
    try:
        most = together(host, bench.count(events), sink)
        began, late = evenly(host, most / 2, WARM_UP + length, sink)
    finally:
        host.end(timeout=40)
    start, quarter, seconds = math.ceil(began) + WARM_UP, length / 4, told(host)
    end = start + int(length) - 1
    bench.raw[name] = {"most": most, "seconds": {s: dict(c) for s, c in seconds.items()
                                                 if s >= start}}
    whole = over(seconds, start, end)
    bench.row(f"{name}, half the load: sent and handled", [most / 2], "events/s")
    bench.row("  the sender behind its plan, at most", [late], "ms")
    bench.row("  p50", [percentile_of(whole, 0.5)], "ms")
    bench.row("  p99", [percentile_of(whole, 0.99)], "ms", "≤ 25")
    bench.row("  p99.9", [percentile_of(whole, 0.999)], "ms")
    bench.row("  p99 of the first quarter minute",
              [percentile_of(over(seconds, start, start + quarter), 0.99)], "ms", "≤ 25")
    bench.row("  p99 of the last quarter minute",
              [percentile_of(over(seconds, end - quarter, end), 0.99)], "ms", "≤ 25")
    return most / 2
