"""Rows A: hosts and workers that are killed, stopped, frozen and drained."""

import os
import signal
import threading

import pytest
from harness import SLOWER
from oracle import latencies, peak, percentile
from scenes import recorder
from stage import plain

PARTITIONS, WINDOW = 8, 256  # of the topic; unsettled events of all its partitions together
INTERVAL = 0.5               # positions.interval


def narrow(**more):
    """The plan's window, over all partitions."""
    return {"window": {"events": WINDOW // PARTITIONS}, "workers": {"count": 8}, **more}


def allowed(stage, kills, hosts=1):
    """D ≤ K · (W + R · commit interval), R being the most that was ever done."""
    return kills * (WINDOW * hosts + peak(stage.database, "effects", "plain", INTERVAL))


#: One in fifty takes so long that later ones are settled and saved before it.
DAWDLES = """
local timer = require "moontide.timer"
return { subscribes = { "*" }, start = "earliest", transaction = true, concurrency = 200,
  handle = function(event, ctx)
    if event.payload.n % 50 == 7 then timer.sleep("600ms") end
    ctx.tx:exec("INSERT INTO seen (handler, event_id, key, n) VALUES ($1, $2, $3, $4)",
      ctx.handler, event.id, event.aggregate_id, event.payload.n)
  end }
"""


def test_A1_the_host_is_killed_in_the_midst_of_its_work(stage):
    kills, number = stage.sized(10, 100), stage.sized(4000, 50_000)
    host = stage.host(stage.on_kafka(**narrow(kafka={"instance_id": "only"})),
                      {"tx": recorder(), "plain": plain(), "dawdles": DAWDLES}).start()
    stage.produce("kafka", rate=stage.sized(500, 300), keys=20)
    stage.progress(host)
    for _ in range(kills):
        at = stage.count() + stage.rng.randrange(200, 700)
        host.wait(lambda: stage.count() >= at, 30, "work to interrupt")
        host.kill()
        stage.fault()
        host.start()
        stage.progress(host, limit=3, what="from the restart to the first event")
    stage.journaled(number, 300)
    stage.drain(host, [("tx", "seen"), ("plain", "effects"), ("dawdles", "seen")])
    stage.check_both(allowed(stage, kills))
    stage.check("dawdles")
    assert host.stop() == 0


@pytest.mark.alone
def test_A2_one_worker_after_the_other_is_killed(stage):
    """Killed from outside, so no handler is blamed for it."""
    kills, stretch = stage.sized(6, 500), stage.sized(1000, 20_000)
    host = stage.host(stage.on_outbox(workers={"count": 8}),
                      {"tx": recorder(), "other": recorder(), "plain": plain()}).start()
    stage.produce("outbox", rate=stage.sized(300, 2000), writers=4)
    stage.progress(host)
    marks = [stage.journal.count()]

    def pass_by(events):
        stage.journaled(stage.journal.count() + events)

    pass_by(stretch)
    marks.append(stage.journal.count())
    respawns = []
    for _ in range(kills):
        # Far enough apart that most events meet no kill: the row asks about the others.
        pass_by(stage.sized(900, 6000))
        pids = host.worker_pids()
        os.kill(stage.rng.choice(pids), signal.SIGKILL)
        stage.fault()
        respawns.append(stage.timed(
            lambda: len(set(host.worker_pids()) - set(pids)) >= 1, 10, "a new worker"))
    marks.append(stage.journal.count())
    pass_by(stretch)
    stage.drain(host, [("tx", "seen"), ("other", "seen"), ("plain", "effects")])
    stage.check_both(allowed(stage, kills))
    stage.check("other")
    stage.figures["recovery"] = max(respawns)
    late = [took for _, took in sorted(latencies(stage.database, stage.journal, "other"))]
    # Without kills: before and after them, for the machine may be busy with something else.
    calm = max(percentile(late[marks[0]:marks[1]], 0.99), percentile(late[marks[2]:], 0.99))
    killed = percentile(late[marks[1]:marks[2]], 0.99)
    assert killed < 2 * calm, f"p99 {killed * 1000:.0f} ms, without kills {calm * 1000:.0f} ms"
    assert percentile(respawns, 0.5) < 0.05 * SLOWER, respawns


def test_A3_a_drain_in_time_leaves_nothing_to_do_twice(stage):
    drains = stage.sized(6, 100)
    host = stage.host(stage.on_kafka(kafka={"instance_id": "only"})).start()
    stage.produce("kafka", rate=stage.sized(1000, 2000))
    for _ in range(drains):
        stage.progress(host)
        at = stage.count() + stage.rng.randrange(50, 500)
        host.wait(lambda: stage.count() >= at, 30, "work to interrupt")
        stage.fault()
        with stage.recovery(10, "the drain"):
            assert host.stop() == 0
        assert host.log_lines("drained"), host.log_text()[-2000:]
        host.start()
    stage.drain(host)
    stage.check_both(duplicates=0)
    assert host.stop() == 0


class Positions:
    """Looks at the position rows all the time: epochs and places only grow."""

    def __init__(self, database):
        self.database, self.last, self.faults = database, {}, []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(10)

    def run(self):
        while not self.over.wait(0.05):
            for handler, partition, epoch, seq in self.database.query(
                    "select handler_name, partition, epoch, seq from event_handler_positions"):
                before = self.last.get((handler, partition), (0, -2**63))
                if epoch < before[0] or seq < before[1]:
                    self.faults.append(f"{handler} {partition}: {before} to {(epoch, seq)}")
                self.last[handler, partition] = (epoch, seq)


def owns_all(host, number=PARTITIONS):
    reply = host.ask("/v1/sources")
    return reply is not None and len([p for p in reply.json()["partitions"] if p["source"] == "kafka"
                                      and p["state"] == "running"]) == number


def signal_all(pids, sig):
    for pid in pids:
        try:
            os.kill(pid, sig)
        except ProcessLookupError:
            pass  # its own watchdog has ended it


def freeze_and_thaw(stage, hosts, frozen, whole):
    """`whole`: its workers too, as a frozen machine; else they notice by themselves."""
    other = hosts[1 - frozen]
    pids = [hosts[frozen].process.pid] + (hosts[frozen].worker_pids() if whole else [])
    signal_all(pids, signal.SIGSTOP)
    stage.fault()
    try:
        with stage.recovery(30, "takeover from the frozen host"):
            other.wait(lambda: owns_all(other), 60 * SLOWER, "all partitions")
            stage.progress(other)
        stage.journaled(stage.journal.count() + 500)
        if stage.long:
            stage.hold(60)
    finally:
        signal_all(pids, signal.SIGCONT)
    hosts[frozen].wait(lambda: any(line for line in hosts[frozen].log_lines("partitions revoked")),
                       30, "the frozen one notices")


def test_A4_a_host_that_was_frozen_writes_nothing(stage):
    freezes = stage.sized(2, 10)
    settings = stage.on_kafka(**narrow(database={"lease": "3s"}, workers={"count": 2}))
    hosts = [stage.host(settings).start() for _ in range(2)]
    stage.produce("kafka", rate=400)
    stage.progress(hosts[0])
    with Positions(stage.database) as positions:
        for turn in range(freezes):
            hosts[0].wait(lambda: all(owns_all(host, PARTITIONS // 2) for host in hosts), 60,
                          "each host has its half")
            freeze_and_thaw(stage, hosts, frozen=stage.rng.randrange(2), whole=turn % 2 == 0)
        stage.drain(hosts)
    stage.check_both(allowed(stage, freezes))
    assert not positions.faults, positions.faults[:3]
    assert all(host.stop() == 0 for host in hosts)


def both_do_their_share(stage, hosts, limit):
    """Each settles something new."""
    before = [host.metric("moontide_settled_total", handler="tx") for host in hosts]
    with stage.recovery(limit, "both hosts at work"):
        for host, count in zip(hosts, before):
            host.wait(lambda: host.metric("moontide_settled_total", handler="tx") > count,
                      limit * SLOWER, "the host's share")


def rolling(stage, hosts, restarts, rate, limit=30):
    """One after the other: some drain, some die."""
    for turn in range(restarts):
        host = hosts[turn % 2]
        if stage.rng.random() < 0.5:
            assert host.stop() == 0
        else:
            host.kill()
        stage.fault()
        stage.journaled(stage.journal.count() + rate)  # a second without it
        host.start()
        both_do_their_share(stage, hosts, limit)
        with stage.recovery(30, "the lag is what it was"):
            host.wait(lambda: stage.journal.count() - stage.count_of("tx") < rate / 4,
                      60 * SLOWER, "the lag is what it was")


def test_A5_two_hosts_are_restarted_in_turn(stage):
    restarts, rate = stage.sized(5, 50), stage.sized(400, 2000)
    settings = stage.on_kafka(**narrow(workers={"count": 2}))
    hosts = [stage.host(settings).start() for _ in range(2)]
    stage.produce("kafka", rate=rate)
    both_do_their_share(stage, hosts, 30)
    rolling(stage, hosts, restarts, rate)
    stage.drain(hosts)
    stage.check_both(allowed(stage, restarts))
    assert all(host.stop() == 0 for host in hosts)


def test_A5_two_hosts_share_an_outbox(stage):
    restarts, rate = stage.sized(4, 50), stage.sized(400, 2000)
    settings = stage.on_outbox(**narrow(workers={"count": 2}, database={"lease": "3s"}))
    hosts = [stage.host(settings).start() for _ in range(2)]
    stage.produce("outbox", rate=rate)
    with Positions(stage.database) as positions:
        both_do_their_share(stage, hosts, 10)
        rolling(stage, hosts, restarts, rate, limit=10)
        frozen = hosts[stage.rng.randrange(2)]
        other = hosts[1 - hosts.index(frozen)]
        frozen.process.send_signal(signal.SIGSTOP)
        stage.fault()
        try:
            with stage.recovery(10, "takeover of the shards"):
                other.wait(lambda: stage.journal.count() - stage.count_of("tx") < rate, 30 * SLOWER,
                           "the other host does its share")
        finally:
            frozen.process.send_signal(signal.SIGCONT)
        stage.drain(hosts)
    stage.check_both(allowed(stage, restarts + 1))
    assert not positions.faults, positions.faults[:3]
    assert all(host.stop() == 0 for host in hosts)


def test_A6_host_and_database_lose_their_power_at_once(stage):
    cuts = stage.sized(3, 20)
    server = stage.own_database()
    host = stage.host(stage.on_outbox(**narrow(workers={"count": 4}))).start()
    stage.produce("outbox", rate=stage.sized(400, 1000), writers=4)
    for _ in range(cuts):
        stage.progress(host, limit=3, what="from the restart to the first event")
        at = stage.count() + stage.rng.randrange(100, 500)
        host.wait(lambda: stage.count() >= at, 60, "work to interrupt")
        host.kill()
        server.kill()
        stage.fault()
        server.start()
        host.start()
    stage.progress(host, limit=3, what="from the restart to the first event")
    stage.drain(host)
    stage.check_both(allowed(stage, cuts))
    assert host.stop() == 0
