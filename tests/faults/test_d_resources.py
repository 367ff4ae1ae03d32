"""Rows D and T: no disk, no descriptors, no memory, no threads; another time."""

import os
import re
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness import BINARY, SLOWER
from scenes import kill_a_worker, recorder
from servers import ROOT, free_port, wait_for
from stage import build_c

LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def preload(folder, source):
    folder.chmod(0o755)
    shim = build_c(folder, source, "-shared", "-fPIC", "-ldl")
    shim.chmod(0o755)
    return str(shim)


def test_D1_the_disk_of_the_database_is_full(stage):
    """Nothing is settled that was not written; when there is space, all goes on."""
    server = stage.own_database()
    folder = stage.own_folder()
    full = folder / "full"
    server.stop()
    server.env = dict(os.environ, LD_PRELOAD=preload(folder, "shim_full.c"),
                      FAULT_DISK_FULL=str(full))
    server.start()
    host = stage.host(stage.on_outbox()).start()
    stage.produce("outbox", rate=stage.sized(300, 1000), writers=4)
    for _ in range(stage.sized(2, 20)):
        stage.progress(host)
        full.touch()
        stage.fault()
        wait_for(lambda: "No space left on device" in server.log.read_text(errors="replace")[-20000:],
                 60, "the disk is full")
        stage.hold(stage.sized(2, 20))
        assert host.process.poll() is None, host.log_text()[-3000:]
        full.unlink()
        if not server.running():
            server.start()  # PostgreSQL itself may end when it cannot write its log
        stage.progress(host, limit=30, what="goes on when there is space")
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


def test_D1_the_disk_of_the_log_is_full(stage):
    """/dev/full: each line that is written fails."""
    port = free_port()
    host = stage.host(stage.on_outbox(http={"listen": f"127.0.0.1:{port}"}, log={"level": "debug"}),
                      under=["sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh"])
    host.spawn()
    stage.produce("outbox", count=stage.sized(500, 20_000))
    stage.producers[0].wait()
    wait_for(lambda: stage.ended("tx", "seen") and stage.ended("plain", "effects"), 60 * SLOWER,
             "all events")
    stage.fault()
    stage.check_both(0)
    assert host.stop() == 0


def crashed_in(text):
    """(function, file) of the code that crashed, of the frames the shim has told."""
    frames = re.findall(r"^(\S+?)\(([^)]*)\) ?\[0x", text, re.M)
    for path, place in frames:
        if "shim_short" in path or "libc.so" in path:
            continue  # the handler itself
        if Path(path).name != BINARY.name:
            return place, path
        name, file = subprocess.run(["addr2line", "-f", "-e", path, place.lstrip("+")],
                                    capture_output=True, text=True).stdout.split("\n")[:2]
        return name, file
    return "?", "?"


def ended_decently(host):
    """By itself with a reason, or by the one abort there is for want of memory.
    librdkafka and others do not look at what malloc gives them: their crash ends
    the process as well, and is not ours."""
    code, text = host.process.returncode, host.log_text()
    if code == -signal.SIGSEGV:
        name, file = crashed_in(text)
        assert str(ROOT / "src") not in file and name != "?", f"{name} {file}: {text[-3000:]}"
        return
    assert code > 0 or (code == -signal.SIGABRT and "broken invariant" in text), \
        f"exit {code}: {text[-1500:]}"
    assert text.strip(), f"exit {code} without a word"


def survives(stage, host, seconds):
    """Until it has ended or does its work; ends it."""
    before, until = stage.count(), time.monotonic() + seconds * SLOWER
    host.spawn()
    while time.monotonic() < until and host.process.poll() is None and stage.count() == before:
        time.sleep(0.02)
    if host.process.poll() is None:
        host.kill()
    else:
        ended_decently(host)
    stage.fault()


def test_D2_too_few_descriptors_at_start(stage):
    stage.produce("outbox", rate=100)
    numbers = (4, 8, 12, 16, 20, 24, 32, 48)
    for number in numbers:
        host = stage.host(stage.on_outbox(), under=["prlimit", f"--nofile={number}"])
        survives(stage, host, 2)
    host = stage.host(stage.on_outbox()).start()
    stage.drain(host)
    stage.check_both(len(numbers) * stage.journal.count())
    assert host.stop() == 0


def test_D2_descriptors_run_out_at_work(stage):
    """Workers die and cannot be replaced, clients cannot be accepted: it waits."""
    host = stage.host(stage.on_kafka()).start()
    stage.produce("kafka", rate=300)
    stage.progress(host)
    pid = host.process.pid
    for _ in range(stage.sized(2, 20)):
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 1, limits[1]))
        stage.fault()
        clients = [socket.create_connection(("127.0.0.1", host.port)) for _ in range(8)]
        for _ in range(3):
            kill_a_worker(host, stage.rng)
        stage.hold(stage.sized(2, 10))
        assert host.process.poll() is None, host.log_text()[-3000:]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        for client in clients:
            client.close()
        stage.progress(host, limit=30, what="goes on with descriptors")
        host.wait(lambda: host.ask("/healthz"), 20, "answers again")
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


def test_D2_an_allocation_fails(stage):
    """Each of the first 5,000 in the long form, some of them in the short."""
    shim = preload(stage.own_folder(), "shim_short.c")
    stage.produce("outbox", rate=100)
    numbers = stage.sized(sorted(stage.rng.sample(range(1, 5001), 12)), range(1, 5001))
    for number in numbers:
        host = stage.host(stage.on_outbox(),
                          env={"LD_PRELOAD": shim, "FAULT_MALLOC": str(number)})
        survives(stage, host, 3)
    host = stage.host(stage.on_outbox()).start()
    stage.drain(host)
    stage.check_both(len(numbers) * stage.journal.count())
    assert host.stop() == 0


def test_D2_no_more_threads(stage):
    shim = preload(stage.own_folder(), "shim_short.c")
    stage.produce("kafka", rate=100)
    for number in range(stage.sized(4, 12)):
        host = stage.host(stage.on_kafka(),
                          env={"LD_PRELOAD": shim, "FAULT_THREADS": str(number)})
        survives(stage, host, 2)
    host = stage.host(stage.on_kafka()).start()
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


#: Waits two seconds for its second try, and half a second inside of it.
PATIENT = """
local timer = require "moontide.timer"
return {
  subscribes = { "*" }, start = "earliest", transaction = true, concurrency = 200, timeout = "20s",
  retry = { max_attempts = 3, base = "2s", jitter = "none" },
  handle = function(event, ctx)
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n, version) VALUES ($1, $2, $3, $4, $5)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n, tostring(event.attempt))
    if event.payload.n % 10 == 0 and event.attempt == 1 then return ctx.retry("once more") end
    if event.payload.n % 10 == 5 then timer.sleep("500ms") end
  end,
}
"""

JUMPS = ["+3600", "-3600", "+86400", "-86400", "+1", "-1", "+31536000", "+0"]


def test_T1_the_clock_jumps(stage):
    """Hours, days, a leap second, a year; the steady clock goes on as it does."""
    assert os.path.exists(LIBFAKETIME), "no libfaketime: ./dev deps"
    clock = stage.folder / "clock"
    clock.write_text("+0\n")
    host = stage.host(stage.on_outbox(), {"tx": recorder(), "patient": PATIENT}, env={
        "LD_PRELOAD": LIBFAKETIME, "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}).start()
    stage.produce("outbox", rate=stage.sized(100, 500), keys=500)
    stage.progress(host)
    for jump in stage.sized(JUMPS, JUMPS * 5):
        clock.write_text(jump + "\n")
        stage.fault()
        stage.journaled(stage.journal.count() + stage.sized(100, 2000))
        stage.progress(host, limit=5)
        negative = {name: value for name, value in host.metrics().items() if value < 0}
        assert not negative, f"{jump}: {negative}"
    stage.drain(host, [("tx", "seen"), ("patient", "seen")])
    stage.check("tx")
    stage.check("patient")
    assert not stage.database.query("select * from event_dead_letters limit 3")
    # Two seconds between two tries, whatever the clock on the wall says: no sooner and no storm.
    early = stage.database.value("""
        select count(*) from seen s join domain_events e on e.id::text = s.event_id
        where s.handler = 'patient' and s.version = '2'
          and s.at < e.created_at + interval '1.9 seconds'""")
    assert early == 0, f"{early} retried early"
    again = host.metric("moontide_deliveries_total", handler="patient", outcome="retry")
    due = sum(entry.n % 10 == 0 for entry in stage.journal.acked.values())
    assert again == due, f"{again:.0f} retries where {due} were asked for"
    assert host.stop() == 0

