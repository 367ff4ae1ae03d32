"""Memory: what host and workers hold after many events."""

import json
import os
import time

import harness
from scenes import (copy_handlers, four_handlers, make_rng, shop_event, sized, wait_count)
from servers import ROOT

MIB = 1024


#: What a burst leaves in the host's heap goes back every two seconds.
TRIM = 2.2


def settled_kib(host):
    """The least that the host had in the time of one trim."""
    end, least = time.monotonic() + TRIM, host.rss_kib(host.process.pid)
    while time.monotonic() < end:
        time.sleep(0.05)
        least = min(least, host.rss_kib(host.process.pid))
    return least


def test_memory_stays_small_and_flat_over_many_events(
        database, topics, catcher, make_host, monkeypatch):
    """Issue 3, done 7: host and each worker <= 40 MiB, flat over the last half."""
    release = ROOT / "build/release/moontide"
    if not os.environ.get("MOONTIDE_BINARY") and release.exists() and harness.PRESET == "dev":
        monkeypatch.setattr(harness, "BINARY", release)
    rng, number = make_rng("memory"), sized(60_000, 1_000_000)
    topic = topics.create("events", 8)
    settings = four_handlers(database, [topic], topics.bootstrap, mail=catcher.settings())
    settings["kafka"]["group_id"] = topics.prefix
    host = make_host(settings=settings)
    copy_handlers(host)
    host.start()
    seen = []
    for part in range(10):
        topics.produce(topic, (
            (key, json.dumps(body), None) for _, key, _, body in (
                shop_event(rng, i, keys=5000)
                for i in range(part * number // 10, (part + 1) * number // 10))))
        wait_count(host, database, (part + 1) * number // 10, "event_audit_log", timeout=300)
        seen.append((settled_kib(host), max(host.rss_kib(pid) for pid in host.worker_pids())))
        print(f"{(part + 1) * number // 10:>9} events: host {seen[-1][0] / MIB:.1f} MiB, "
              f"largest worker {seen[-1][1] / MIB:.1f} MiB")
    if harness.SLOWER == 1:
        for which, name in ((0, "host"), (1, "worker")):
            before, after = (max(part[which] for part in half) for half in (seen[:5], seen[5:]))
            assert after <= 40 * MIB, f"{name}: {after} KiB"
            assert after <= before + 3 * MIB, f"{name} grows: {seen}"
    assert host.stop() == 0
