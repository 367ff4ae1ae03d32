--- moontide.events: publishing, and reading what was published.
--
-- In a transaction of the delivery the event is a row of it: stored with the
-- other effects or not at all. Else it is stored by a statement of its own, and
-- without a database the host produces it to Kafka. The id comes from the
-- idempotency key, so a retried delivery publishes the same event again.

local host = ...

local prim = host.events
local json = host.require "json"
local uuid = host.require "uuid"

local M = {}

-- Namespace of the event ids made from idempotency keys.
local EVENT_IDS = "3d2f1a44-6a0c-5a7e-8c0d-0d9b6b1a7a10"

-- An event that caused an event that caused an event …: a loop ends here.
local MAX_HOPS = 16

local PAGE = 500

local FIELDS = { type = true, aggregate_type = true, aggregate_id = true, payload = true,
                 version = true, metadata = true, expected_version = true, occurred_at = true,
                 idempotency_key = true }


local function check(event)
  if type(event) ~= "table" then error("events.publish takes a table", 3) end
  for key in pairs(event) do
    if not FIELDS[key] then error(("unknown field %s of an event"):format(tostring(key)), 3) end
  end
  for _, key in ipairs { "type", "aggregate_type", "aggregate_id" } do
    if type(event[key]) ~= "string" or event[key] == "" then
      error("events.publish needs " .. key, 3)
    end
  end
  if event.payload == nil then error("events.publish needs a payload", 3) end
end


-- What this event has to do with the one being handled.
local function metadata_of(event, cause)
  local metadata = {}
  for key, value in host.pairs(event.metadata or {}) do metadata[key] = value end
  local before = cause and cause.metadata or {}
  metadata.hops = (tonumber(before.hops) or 0) + 1
  if cause then
    metadata.causationId = metadata.causationId or cause.id
    metadata.correlationId = metadata.correlationId or before.correlationId or cause.id
    metadata.traceparent = metadata.traceparent or before.traceparent
  end
  metadata.sourceModule = metadata.sourceModule or host.handler
  return metadata
end


local STORE = "SELECT publish_event($1, $2, $3, $4::jsonb, $5::jsonb, $6, $7, "
  .. "coalesce($8::timestamptz, clock_timestamp()), $9) AS id"

-- Without the delivery's transaction an inbox row remembers that the event is
-- stored, for the table's own key has the time in it. Its handler is no name
-- that a handler can have: the row must not look like a delivery of the event.
local STORE_ONCE = "WITH new AS (INSERT INTO event_inbox (handler, event_id) VALUES ($10, $9) "
  .. "ON CONFLICT DO NOTHING RETURNING 1) " .. STORE .. " FROM new"


-- True when stored now, false when it was before; nil, err.
local function store(e)
  local tx = host.db_tx and host.db_tx.of(host.get_tx())
  local session, err = tx and tx.session
  if not session then
    session, err = host.db.acquire("main", false)
    if not session then return nil, err end
  end
  local params = { e.type, e.aggregate_type, e.aggregate_id, json.encode(e.payload),
                   json.encode(e.metadata), e.version, e.expected_version, e.occurred_at, e.id,
                   host.handler .. ":publish" }
  local rows
  if tx then
    rows, err = session:query(STORE, unpack(params, 1, 9))
    if err and not tx.first_error then tx.first_error = err end
  else
    rows, err = session:query(STORE_ONCE, unpack(params, 1, 10))
    session:release()
  end
  if not rows then return nil, err end
  return #rows == 1
end


local function produce(e)
  local event = {
    id = e.id, eventType = e.type, eventVersion = e.version, aggregateType = e.aggregate_type,
    aggregateId = e.aggregate_id, occurredAt = e.occurred_at, payload = e.payload,
    metadata = e.metadata,
  }
  local ok, err
  if host.get_outputs() then
    ok, err = host.add_output({ event = event }, "", #json.encode(event))
  else
    ok, err = host.call(json.encode { op = "publish", event = event })
  end
  if not ok then return nil, err end
  return e.id
end


local function has_database()
  local url = host.setting("database.url")
  return type(url) == "string" and url ~= ""
end


--- Publish an event. Returns its id.
---@param event moontide.events.NewEvent
---@return string|nil, moontide.Error?
function M.publish(event)
  host.check("events.publish")
  check(event)
  local cause = host.event()
  local e = {
    type = event.type, aggregate_type = event.aggregate_type, aggregate_id = event.aggregate_id,
    payload = event.payload, version = event.version or 1, occurred_at = event.occurred_at,
    expected_version = event.expected_version, metadata = metadata_of(event, cause),
    id = uuid.v5(EVENT_IDS, event.idempotency_key or host.idempotency_key()),
  }
  if e.metadata.hops > MAX_HOPS then
    error(host.verdict("dead", ("%s would be event %d of a chain of handlers: a loop"):format(
      e.type, e.metadata.hops)), 0)
  end
  local answered, result, err = host.effect("events", "events.publish", e)
  if answered then
    if err ~= nil then return nil, err end
    return result or e.id
  end
  local started = prim.clock()
  if has_database() then
    local is_new
    is_new, err = store(e)
    if is_new then
      prim.stored(started)
      prim.raised(e.aggregate_type, e.type)
    end
    if is_new ~= nil then result = e.id end
  else
    result, err = produce(e) -- the host counts it
  end
  host.effect_done("events", err == nil)
  return result, err
end


-- Reading -----------------------------------------------------------------

local COLUMNS = "SELECT id::text AS id, event_type AS type, event_version AS version, "
  .. "aggregate_type, aggregate_id::text AS aggregate_id, aggregate_version, occurred_at, "
  .. "event_data AS payload, metadata, seq FROM "


local function read_page(sql, ...)
  local session, err = host.db.acquire("main", false)
  local rows
  if session then
    rows, err = session:query(sql, ...)
    session:release()
  end
  if not rows then error(err, 0) end
  return rows
end


local PAGE_OF_AGGREGATE = COLUMNS .. "events_by_aggregate_page($1, $2, $3, " .. PAGE .. ") "
  .. "ORDER BY seq"
local PAGE_OF_TYPE = COLUMNS .. "events_by_type_page($1, $2, $3, " .. PAGE .. ") "
  .. "ORDER BY occurred_at, seq"


-- Rows of pages: read(last) gives the page behind the row `last`, nil at first.
-- No session is held between them, for an iterator may be left at any point.
local function iterate(read)
  local rows, at, last, ended = {}, 0, nil, false
  return function()
    if at == #rows and not ended then
      rows, at = read(last), 0
      ended = #rows < PAGE
    end
    at = at + 1
    local row = rows[at]
    if not row then at = #rows return nil end
    last = row
    return row
  end
end


local function nothing()
  return nil
end


local function reader(name, read, ...)
  host.check(name)
  local answered, result, err = host.effect("sql", name, { ... })
  if not answered then return iterate(read) end
  if err ~= nil then error(err, 0) end
  local list, i = result or {}, 0
  if #list == 0 then return nothing end
  return function()
    i = i + 1
    return list[i]
  end
end


--- All events of an aggregate, oldest first. Raises when the store fails.
---@param aggregate_type string
---@param id string
function M.by_aggregate(aggregate_type, id)
  return reader("events.by_aggregate", function(last)
    return read_page(PAGE_OF_AGGREGATE, aggregate_type, id, last and last.seq or 0)
  end, aggregate_type, id)
end


--- All events of a type since a time (RFC 3339), by that time.
---@param event_type string
---@param since string?
function M.by_type(event_type, since)
  return reader("events.by_type", function(last)
    if last then return read_page(PAGE_OF_TYPE, event_type, last.occurred_at, last.seq) end
    return read_page(PAGE_OF_TYPE, event_type, since or "-infinity", 0)
  end, event_type, since)
end


return M
