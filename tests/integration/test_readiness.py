"""/readyz: ready as long as every running handler moves or has nothing to do (M9)."""

from harness import Host
from scenes import count, make_seen, wait_count

KEY = "00000000-0000-4000-8000-000000000001"
STUCK_S = 30  # no progress for so long is not ready

#: One event after the other, each takes a second.
SLOW = """
local timer = require "moontide.timer"
return {
  subscribes = { "*" }, start = "earliest", ordering = "partition", transaction = true,
  handle = function(event, ctx)
    timer.sleep("1s")
    ctx.tx:exec("INSERT INTO seen (handler, event_id, n) VALUES ($1, $2, $3)",
      ctx.handler, event.id, event.payload.n)
  end,
}
"""

STUCK = """
return {
  subscribes = { "Stuck" }, start = "earliest",
  retry = { max_attempts = 1000, base = "1s", cap = "1s" },
  handle = function(event, ctx) error("never") end,
}
"""


def on_outbox(database, **more):
    return {"database": {"url": database.url}, "drain_timeout": "1s", **more}


def reasons(host):
    return host.ask("/readyz").json()["reasons"]


def test_who_is_slow_but_moves_is_ready(database, make_host):
    make_seen(database)
    for n in range(STUCK_S + 8):
        database.publish("Slow", "Thing", KEY, {"n": n})
    host = make_host(settings=on_outbox(database), handlers={"slow": SLOW}).start()
    wait_count(host, database, 1)
    done = 1
    while done < STUCK_S + 5:  # the last one has waited for so long by then
        assert reasons(host) == [], f"after {done} events"
        wait_count(host, database, done + 1)
        done = count(database)
    host.stop()


def test_what_is_held_on_purpose_is_no_reason(database, make_host):
    host = make_host(settings=on_outbox(database), handlers={"stuck": STUCK}).start()
    event = database.publish("Stuck", "Thing", KEY, {"n": 1})
    blocked = host.wait(lambda: reasons(host), STUCK_S + 15, "not ready")
    assert blocked[0]["handler"] == "stuck" and blocked[0]["blockingEvent"] == event
    assert "never" in blocked[0]["why"] and blocked[0]["since"]
    for flag in ("DOMAIN_EVENTS_ENABLED", "handler:stuck"):
        host.cli("flags", "set", flag, "off", "--reason", "test", "--url", host.url)
        host.wait(lambda: not reasons(host), 10, f"{flag} off is somebody's wish")
        host.cli("flags", "unset", flag, "--url", host.url)
        host.wait(lambda: host.ask("/v1/status").json()["flags"] is not None, 10, "flags")
        host.wait(lambda: reasons(host), STUCK_S + 15, "it blocks again")
    host.stop()


def test_a_database_that_is_away_is_named_with_its_error(own_postgres, make_host, tmp_path):
    url = own_postgres.url("postgres")
    Host(tmp_path / "migrate", settings={"database": {"url": url}}).cli(
        "migrate", "up", "-c", str(tmp_path / "migrate/moontide.lua"))
    host = make_host(settings={"database": {"url": url}}, handlers={"stuck": STUCK}).start()
    assert reasons(host) == []
    own_postgres.stop()
    found = host.wait(lambda: reasons(host), 20, "not ready")
    assert found[0]["why"].startswith("the database cannot be reached: ")
    own_postgres.start()
    host.wait(lambda: not reasons(host), 30, "ready again")
    assert host.stop() == 0
