"""Rows L: handlers that are slow, that fail in odd ways, whose dependency is down.

L2 to L6 (loops, memory, crashes, patterns, escapes) are the unit tests
test_worker_limits, test_worker_sandbox, test_worker_process and
tests/integration/test_limits.py.
"""

import json

import pytest
from flaky import Flaky
from harness import SLOWER
from oracle import latencies, percentile
from scenes import recorder, wait_count
from test_p_database import KEY

SLOW = """
local timer = require "moontide.timer"
return { subscribes = { "*" }, start = "earliest", timeout = "30s",
  handle = function() timer.sleep("5s") end }
"""


def memory_until(stage, host, number, timeout):
    """RSS of the host in KiB, looked at all the while until so many events are written."""
    found = []

    def is_there():
        found.append(host.rss_kib(host.process.pid))
        return stage.journal.count() >= number

    host.wait(is_there, timeout * SLOWER, f"{number} acknowledged events")
    return found


@pytest.mark.alone
def test_L1_a_slow_handler_does_not_slow_the_others(stage):
    """It sleeps 5 s for each event, so it falls behind by all that is written; of that the host
    holds no more than the windows."""
    rate, names = stage.sized(400, 1000), ("one", "two", "three")
    # A small window, so that a short run shows what a long one would with a large one.
    settings = stage.on_kafka(window={"events": 64}, rdkafka={"max.poll.interval.ms": 10000})
    host = stage.host(settings, {name: recorder() for name in names}).start()
    stage.produce("kafka", rate=rate)
    stage.progress(host)
    stage.journaled(stage.journal.count() + 3 * rate)
    warm = stage.journal.count()
    stage.journaled(warm + stage.sized(2000, 60_000), 120)
    calm = stage.journal.count()
    host.handler("slow", SLOW)
    host.wait(lambda: host.log_lines("handler loaded")[3:], 20, "the slow one")
    stage.fault()
    sizes = memory_until(stage, host, calm + stage.sized(4000, 600_000), 900)
    with stage.recovery(5, "the others have done all"):
        host.wait(lambda: all(stage.count_of(name) >= stage.journal.count() - rate
                              for name in names), 5 * SLOWER, "the others have done all")
    late = sorted(latencies(stage.database, stage.journal.read(), "one"))
    before = percentile([took for _, took in late[warm:calm]], 0.99)
    after = percentile([took for _, took in late[calm:]], 0.99)
    early, later = max(sizes[:len(sizes) // 3]), max(sizes[len(sizes) // 3:])
    print(f"p99 {after * 1000:.1f} ms, without the slow one {before * 1000:.1f} ms; the host's memory"
          f" {early} KiB at most in the first third, {later} KiB after it")
    # A few thousand events say more about the machine than 20 % do.
    assert after < before * 1.2 + stage.sized(0.05, 0), f"p99 {after * 1000:.0f} ms, without the slow one {before * 1000:.0f}"
    assert later < early + 2048, f"the host grew from {early} to {later} KiB"
    assert "max.poll" not in host.log_text()


#: What a handler may raise; each is one dead letter of class bug.
RAISED = {
    "string": 'error("plain words")',
    "table": "error({ code = 7 })",
    "nil": "error(nil)",
    "number": "error(42)",
    "false": "error(false)",
    "function": "error(function() end)",
    "tostring": 'error(setmetatable({}, { __tostring = function() error("worse") end }))',
    "tostring_number": "error(setmetatable({}, { __tostring = function() return 7 end }))",
    "long": 'error(("x"):rep(10 * 1024 * 1024))',
    "nuls": 'error("before\\0after")',
    "bytes": 'error("\\255\\254 no utf-8")',
    "lines": 'error("first\\nsecond\\r\\nthird\\27[31m")',
    "quotes": """error("'; drop table seen; --\\\\")""",
    "deep": "local function f(n) return 1 + f(n + 1) end f(1)",
    "returned": "return 7",
    "verdict": "ctx.dead('made and forgotten')",
}

RAISES = """
return { subscribes = { "Raises" }, start = "earliest", retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx) %s end }
"""


def test_L7_whatever_is_raised_is_one_well_formed_dead_letter(stage):
    handlers = {f"raises_{name}": RAISES % body for name, body in RAISED.items()}
    host = stage.host(stage.on_outbox(), {**handlers, "tx": recorder()}).start()
    events = stage.sized(3, 100)
    ids = [stage.database.publish("Raises", "Thing", KEY.format(n), {"n": n}) for n in range(events)]
    for n, id in enumerate(ids):
        stage.journal.add(id, KEY.format(n), n)
    wait_count(host, stage.database, events * len(RAISED), "event_dead_letters", timeout=120)
    wait_count(host, stage.database, events)
    stage.fault(events * len(RAISED))
    letters = stage.database.query(
        "select handler, class, error, attempts, history::text, length(error) from event_dead_letters")
    assert len(letters) == events * len(RAISED)
    for handler, kind, error, attempts, history, size in letters:
        assert (kind, attempts) == ("bug", 2) or handler == "raises_deep", f"{handler}: {kind}: {error}"
        assert error and size <= 65536, f"{handler}: {size} characters"
        assert len(json.loads(history)) == 2, handler
    assert {handler for handler, *_ in letters} == set(handlers)
    stage.check("tx")
    shown = host.cli("dead-letters", "list", "--json", "--url", host.url)
    assert json.loads(shown.stdout)["deadLetters"]
    assert host.log_lines("dead letter"), "the log's lines are no JSON"
    assert host.stop() == 0


POSTS = """
local http = require "moontide.http"
return { subscribes = { "*" }, start = "earliest", concurrency = 100, timeout = "10s",
  allow = { http = { "http://127.0.0.1:%(port)d/" } },
  retry = { max_attempts = %(attempts)d, base = "100ms", cap = "2s" }, breaker = %(breaker)s,
  handle = function(event, ctx)
    local res, err = http.post("http://127.0.0.1:%(port)d/x", { json = { n = 1 }, timeout = "500ms" })
    if not res then return ctx.retry(err) end
    if res.status >= 500 then return ctx.retry("says " .. res.status) end
  end }
"""


def outage(stage, attempts, mode, events, breaker="false"):
    """Events for a dependency that is down; the host, and the dependency. With a circuit breaker the
    policy would hardly be seen: what it keeps from trying counts no attempt."""
    flaky = Flaky()
    stage.servers.append(flaky)
    host = stage.host(stage.on_outbox(), {
        "tx": recorder(), "posts": POSTS % {"port": flaky.port, "attempts": attempts, "breaker": breaker}}).start()
    flaky.mode = mode
    stage.fault()
    stage.produce("outbox", rate=200, count=events, keys=100)
    return host, flaky


@pytest.mark.parametrize("mode", ["500", "hang", "reset"])
def test_L8_a_dependency_is_down(stage, mode):
    """Tries within the policy and spread by jitter; all comes out when it is up."""
    number = stage.sized(100, 2000)
    host, flaky = outage(stage, 1000, mode, number)
    host.wait(lambda: flaky.count(mode) >= 3 * number, 120, "three tries each")
    stage.hold(stage.sized(0, 600))
    wait_count(host, stage.database, number, where="handler = 'tx'")  # the others go on
    flaky.mode = "ok"
    with stage.recovery(30, "all is posted"):
        host.wait(lambda: sum(any(how == "ok" for _, how in calls)
                              for calls in list(flaky.calls.values())) >= number, 60, "all is posted")
    stage.drain(host, [("tx", "seen")])
    stage.check("tx")
    assert not stage.database.query("select * from event_dead_letters limit 3")
    pauses = [after[0] - before[0] for calls in flaky.calls.values()
              for before, after in zip(calls, calls[1:])]
    assert len({round(pause, 2) for pause in pauses}) > 10, "no jitter"
    assert host.stop() == 0


def test_L8_tries_end_with_the_policy(stage):
    number = stage.sized(60, 500)
    host, flaky = outage(stage, 3, "500", number)
    wait_count(host, stage.database, number, "event_dead_letters", timeout=120)
    assert sorted({len(calls) for calls in flaky.calls.values()}) == [3]
    assert len(flaky.calls) == number, "a key that stays the same over the tries"
    stage.drain(host, [("tx", "seen")])
    stage.check("tx")
    assert host.stop() == 0


def test_L8_a_circuit_opens_while_a_dependency_is_down(stage):
    host, flaky = outage(stage, 3, "500", stage.sized(200, 2000), breaker="{ open = '1s' }")
    host.wait(lambda: host.metric("moontide_breaker_open", handler="posts") >= 1, 30,
              "the circuit is shown")
    before = flaky.count()
    stage.hold(2)
    assert flaky.count() - before < 20, "an open circuit lets probes through, not the load"
    flaky.mode = "ok"
    with stage.recovery(30, "closed again"):
        stage.drain(host, [("tx", "seen")])
