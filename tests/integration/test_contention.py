"""Handlers that are in each other's way in the database: row P9 of the fault plan."""

from scenes import count, wait_count

#: One attempt only: whatever counted one would be a dead letter. The pause makes
#: sure that both hold their first row before they want their second.
OPPOSITE = """
local sleep = require("moontide.timer").sleep
return {
  subscribes = { "Moved" }, start = "earliest", retry = { max_attempts = 1 },
  transaction = true, concurrency = 2,
  handle = function(event, ctx)
    ctx.tx:exec("UPDATE balance SET n = n + 1 WHERE id = $1", %d)
    sleep("5ms")
    ctx.tx:exec("UPDATE balance SET n = n + 1 WHERE id = $1", %d)
  end,
}
"""

#: Reads and writes in transactions of its own that must not see each other.
SERIAL = """
local db = require "moontide.db"
return {
  subscribes = { "Moved" }, start = "earliest", retry = { max_attempts = 1 },
  allow = { db = true },
  handle = function(event, ctx)
    local done, err = db.transaction(function(tx)
      tx:exec("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
      local rows = tx:query("SELECT n FROM balance WHERE id = 3")
      tx:exec("INSERT INTO seen VALUES ($1) ON CONFLICT DO NOTHING", event.id)
      tx:exec("UPDATE balance SET n = $1 WHERE id = 3", rows[1].n + 1)
      return true
    end)
    if not done then return ctx.retry(err) end
  end,
}
"""


def test_deadlocks_and_serialization_failures_count_no_attempt(database, make_host):
    """Requirements of the fault plan P9, design 13.9."""
    database.query("create table balance (id int primary key, n bigint not null)")
    database.query("create table seen (id text primary key)")
    database.query("insert into balance values (1, 0), (2, 0), (3, 0)")
    database.query(f"alter database {database.name} set deadlock_timeout = '20ms'")
    for n in range(100):
        database.publish("Moved", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": n})
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"there": OPPOSITE % (1, 2), "back": OPPOSITE % (2, 1),
                               "serial": SERIAL})
    host.start()
    for name in ("there", "back", "serial"):
        host.wait(lambda name=name: host.metric("moontide_settled_total", handler=name) >= 100, 60,
                  f"{name} is done")
    assert count(database, "event_dead_letters") == 0
    wait_count(host, database, 100)
    rows = dict(database.query("select id, n from balance"))
    assert rows == {1: 200, 2: 200, 3: 100}
    pair = sum(host.metric("moontide_database_retries_total", handler=h) for h in ("there", "back"))
    assert pair > 0, "they never got in each other's way"
    assert host.metric("moontide_database_retries_total", handler="serial") > 0
    assert host.metric("event_handler_errors_total") == 0
