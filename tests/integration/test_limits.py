"""Handlers that misbehave: they fail alone."""

from scenes import make_seen, recorder, wait_count

POISON = {
    # an endless loop: the watchdog's hook ends it
    "looper": ("limit", "while true do end"),
    # a loop that swallows the hook's error as long as it can
    "stubborn": ("limit", "while true do pcall(function() while true do end end) end"),
    # a pattern that never ends: moontide's own matcher counts its steps
    "pattern": ("bug", 'return string.find(("a"):rep(50000), ".-.-.-.-.-.-b") and nil'),
    "eater": ("limit", "local t = {} while true do t[#t + 1] = (\"x\"):rep(100000) .. #t end"),
    "recursion": (None, "local function deep(n) return 1 + deep(n + 1) end deep(1)"),
    "builder": ("limit", "local s = 'x' while true do s = s .. s end"),
}

HANDLER = """
return {
  subscribes = { "Poison" },
  start = "earliest",
  retry = { max_attempts = 2, base = "10ms" },
  timeout = "5s",
  handle = function(event, ctx) %s end,
}
"""


def test_offenders_become_dead_letters_while_the_other_handlers_go_on(database, make_host):
    """Issue 3, done 4; requirements S1-77, M6."""
    make_seen(database)
    handlers = {name: HANDLER % body for name, (_, body) in POISON.items()}
    handlers["recorder"] = recorder('"Fine", "Poison"')
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "workers": {"count": 2, "memory_limit": "16MiB"}},
                     handlers=handlers).start()
    pid = host.process.pid
    before_kib = host.rss_kib(pid)
    key = "00000000-0000-4000-8000-{:012d}"
    for n in range(20):
        database.publish("Fine", "Thing", key.format(n), {"n": n})
    database.publish("Poison", "Thing", key.format(1), {"n": 100})
    for n in range(20, 60):
        database.publish("Fine", "Thing", key.format(n), {"n": n})

    wait_count(host, database, 61, timeout=60)  # the others went on
    wait_count(host, database, len(POISON), "event_dead_letters", timeout=120)
    letters = {handler: (kind, error) for handler, kind, error in database.query(
        "select handler, class, error from event_dead_letters")}
    for name, (kind, _) in POISON.items():
        got, error = letters[name]
        assert kind in (None, got), f"{name}: {got}: {error}"
        assert error, name
    assert host.metric("event_dead_letter_total") == len(POISON)

    # Afterwards everything is as before: new events run, memory came back.
    database.publish("Fine", "Thing", key.format(7), {"n": 200})
    wait_count(host, database, 1, where="n = 200")
    host.wait(lambda: host.ask("/readyz").status == 200, 30, "ready again")
    host.wait(lambda: all(rss_or_zero(host, worker) < 64 * 1024 for worker in host.worker_pids()),
              30, "the workers' memory back")
    assert host.rss_kib(pid) < before_kib + 16 * 1024
    assert host.stop() == 0


def rss_or_zero(host, pid):
    try:
        return host.rss_kib(pid)
    except OSError:
        return 0  # it has just been replaced


def test_a_slow_handler_waits_alone_and_its_timeout_is_a_failed_attempt(database, make_host):
    """One that waits holds up one delivery of its own, nothing else."""
    make_seen(database)
    host = make_host(
        settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                  "workers": {"count": 1}},
        handlers={"slow": """
            local timer = require "moontide.timer"
            return { subscribes = { "*" }, start = "earliest", timeout = "500ms",
              retry = { max_attempts = 1 },
              handle = function() timer.sleep("60s") end }""",
                  "recorder": recorder()}).start()
    for n in range(30):
        database.publish("Fine", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": n})
    wait_count(host, database, 30, timeout=20)
    wait_count(host, database, 30, "event_dead_letters", "error like 'timeout:%'", timeout=30)


def test_a_handler_that_ends_its_worker_three_times_makes_a_dead_letter(database, make_host):
    """Three crash strikes; the deliveries beside it are given out again in order."""
    make_seen(database)
    crash = HANDLER.replace("max_attempts = 2", "max_attempts = 9") % POISON["looper"][1]
    # No hook ends the loop here: the worker shows no sign of life and is killed.
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "workers": {"count": 1, "soft_limit": "60s", "hard_limit": "500ms"}},
                     handlers={"crasher": crash, "recorder": recorder()}).start()
    with database.connect() as connection, connection.cursor() as cursor:
        for n in range(200):
            cursor.execute("select publish_event(%s, 'Thing', %s, jsonb_build_object('n', %s::int))",
                           ("Poison" if n == 50 else "Fine",
                            f"00000000-0000-4000-8000-{n % 5:012d}", n))
    wait_count(host, database, 200, timeout=60)
    wait_count(host, database, 1, "event_dead_letters", timeout=60)
    handler, error, attempts = database.query(
        "select handler, error, attempts from event_dead_letters")[0]
    assert (handler, attempts) == ("crasher", 3) and "no sign of life" in error
    assert host.metric("moontide_worker_restarts_total") >= 3
    for key in range(5):
        numbers = [row[0] for row in database.query(
            "select n from seen where key = %s order by place",
            (f"00000000-0000-4000-8000-{key:012d}",))]
        assert numbers == sorted(set(numbers)) and len(numbers) == 40
