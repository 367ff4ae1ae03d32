"""What handlers do with the store itself: read events back, guard a version."""

from scenes import make_seen

KEY = "00000000-0000-4000-8000-000000000001"

READS = """
local events = require "moontide.events"
local log = require "moontide.log"
return { subscribes = { "Read" }, start = "earliest", retry = { max_attempts = 1 },
  handle = function(event, ctx)
    local next = 0
    for e in events.by_aggregate("Thing", event.aggregate_id) do
      if e.payload.n ~= next then error("expected " .. next .. ", got " .. tostring(e.payload.n)) end
      if e.aggregate_id ~= event.aggregate_id then error("another aggregate") end
      next = next + 1
    end
    local late = 0
    for e in events.by_type("Changed", event.payload.since) do late = late + 1 end
    for e in events.by_type("Changed") do
      if e.payload.n == 600 then break end
    end
    log.info("have read", { all = next, late = late })
  end }
"""


def test_a_handler_reads_events_of_an_aggregate_and_of_a_type(database, make_host):
    """Requirement S1-10: GetByAggregate, GetByType; over several pages."""
    database.query("""
        select publish_event('Changed', 'Thing', %s, jsonb_build_object('n', n), occurred_at =>
                             timestamptz '2026-01-01 00:00:00Z' + n * interval '1 second')
        from generate_series(0, 1202) n""", (KEY,))
    database.publish("Changed", "Thing", KEY.replace("1", "2"), {"n": 7},
                     occurred_at="2026-01-01T00:00:00Z")
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"reads": READS}).start()
    database.publish("Read", "Reader", KEY, {"since": "2026-01-01T00:20:00Z"})
    host.wait(lambda: host.log_lines("have read") or database.query(
        "select 1 from event_dead_letters"), 30, "the reading")
    assert database.query("select error from event_dead_letters") == []
    line = host.log_lines("have read")[0]
    assert (line["all"], line["late"]) == ("1203", "3")


GUARDS = """
local events = require "moontide.events"
return { subscribes = { "Try" }, start = "earliest", transaction = true,
  retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx)
    ctx.tx:exec("insert into seen (handler, event_id) values ($1, $2)", ctx.handler, event.id)
    events.publish { type = "Done", aggregate_type = "Account", aggregate_id = event.aggregate_id,
      payload = {}, expected_version = event.payload.expected }
  end }
"""


def test_an_event_with_a_wrong_expected_version_is_not_stored(database, make_host):
    """C3: optimistic concurrency by aggregate_versions; the delivery's effects go with it."""
    make_seen(database)
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"}},
                     handlers={"guards": GUARDS}).start()
    ids = [database.publish("Try", "A", KEY, {"expected": n}) for n in (0, 1, 1, 2)]
    host.wait(lambda: host.metric("moontide_settled_total", handler="guards") == 4, 30, "all four")
    assert database.query("select event_id::text, code, attempts from event_dead_letters") == [
        (ids[2], "MT001", 2)]
    assert database.query("""select aggregate_version from domain_events
        where event_type = 'Done' order by seq""") == [(1,), (2,), (3,)]
    assert [row[0] for row in database.query("select event_id from seen order by place")] == [
        ids[0], ids[1], ids[3]]
