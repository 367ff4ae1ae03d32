--- Writes one row of the audit log for every event, whatever its type.
--
-- Exactly once: the rows commit together with the inbox rows of their events.
-- The table refuses UPDATE, DELETE and TRUNCATE.

local json = require "moontide.json"

local COLUMNS = {
  "event_id", "event_type", "event_version", "aggregate_type", "aggregate_id",
  "aggregate_version", "occurred_at", "actor", "correlation_id", "place", "payload", "metadata",
}

--- Where the event came from: "domain_events:4711" or "domain.Order/3:4711".
local function place_of(source)
  if source.kind == "kafka" then
    return ("%s/%s:%s"):format(source.topic, source.partition, tostring(source.offset))
  end
  return ("%s:%s"):format(source.table or source.kind, tostring(source.seq))
end

--- A CloudEvent's version may be text such as "v2"; the column is an int. Which
--- event it was must not hang on that: the number in it, or 1.
local function version_of(event)
  local version = event.version
  if type(version) == "string" then version = tonumber(version:match("%d+")) end
  return version and version < 2 ^ 31 and version or 1
end

local function aggregate_version_of(event)
  local version = event.aggregate_version
  return type(version) ~= "string" and version or nil
end

--- A table is written as JSON by itself, byte for byte as it came; what is none
--- has to be told that it is.
local function json_of(value)
  if type(value) == "table" then return value end
  if value == nil then return "null" end
  return json.encode(value)
end

local function row_of(event)
  local metadata = event.metadata or {}
  return {
    event.id, event.type, version_of(event), event.aggregate_type or "", event.aggregate_id or "",
    aggregate_version_of(event), event.occurred_at, metadata.actorId, metadata.correlationId,
    place_of(event.source), json_of(event.payload), json_of(metadata),
  }
end

---@type moontide.Handler
return {
  description = "Writes one row of the audit log for every event.",
  subscribes  = { "*" },
  ordering    = "key",
  concurrency = 1000,
  transaction = true,
  batch       = { max = 500, wait = "5ms" },

  handle_batch = function(events, ctx)
    local rows = {}
    for i, event in ipairs(events) do
      rows[i] = row_of(event)
    end
    -- A failed statement makes a retry of the batch by itself.
    ctx.tx:copy("event_audit_log", COLUMNS, rows)
  end,
}
