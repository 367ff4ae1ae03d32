"""Memory: what host and workers hold after many events."""

import json
import os

import harness
from scenes import (copy_handlers, four_handlers, make_rng, shop_event, sized, wait_count)
from servers import ROOT

MIB = 1024


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
        pids = host.worker_pids()
        seen.append((host.rss_kib(host.process.pid), max(host.rss_kib(pid) for pid in pids)))
        print(f"{(part + 1) * number // 10:>9} events: host {seen[-1][0] / MIB:.1f} MiB, "
              f"largest worker {seen[-1][1] / MIB:.1f} MiB")
    if harness.SLOWER == 1:
        for which, name in ((0, "host"), (1, "worker")):
            # What a burst leaves goes back every two seconds: the highest of each half counts.
            before, after = (max(part[which] for part in half) for half in (seen[:5], seen[5:]))
            assert after <= 40 * MIB, f"{name}: {after} KiB"
            assert after <= before + 3 * MIB, f"{name} grows: {seen}"
    assert host.stop() == 0
