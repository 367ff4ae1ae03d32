--- Checks every call against consent, calling hours, the do-not-call list and
--- the number of calls to the same phone.
--
-- The check, and the event that tells its result, commit together and exactly
-- once. Events of one phone run one after the other: they share a lane.

local events = require "moontide.events"
local json   = require "moontide.json"
local time   = require "moontide.time"

local FACTS = [[
  SELECT (SELECT granted AND (expires_at IS NULL OR expires_at > $2::timestamptz)
          FROM consents WHERE phone = $1 AND channel = 'call') AS consent,
         EXISTS (SELECT FROM do_not_call WHERE phone = $1) AS do_not_call,
         (SELECT count(*) FROM compliance_checks
          WHERE phone = $1 AND event_type = 'CallCreated' AND call_id <> $3
            AND called_at > $2::timestamptz - make_interval(hours => $4::int)
            AND called_at <= $2::timestamptz) AS calls]]

local REMEMBER = [[
  INSERT INTO compliance_checks
    (event_id, event_type, call_id, phone, passed, violations, local_time, called_at)
  VALUES ($1, $2, $3, $4, $5, string_to_array($6, ','), $7, $8)]]

-- A consent that came late must not undo a newer one.
local CONSENT = [[
  INSERT INTO consents AS known (phone, channel, granted, expires_at, changed_at, event_id)
  VALUES ($1, $2, $3, $4, $5, $6)
  ON CONFLICT (phone, channel) DO UPDATE
  SET granted = excluded.granted, expires_at = excluded.expires_at,
      changed_at = excluded.changed_at, event_id = excluded.event_id
  WHERE known.changed_at <= excluded.changed_at]]

local function keep_consent(event, ctx, granted)
  local consent = event.payload
  ctx.tx:exec(CONSENT, consent.phone, consent.channel or "call", granted,
    granted and consent.expires_at or nil, event.occurred_at, event.id)
end

local function is_phone(text)
  return type(text) == "string" and text:find("^%+%d%d%d%d%d%d%d%d?%d?%d?%d?%d?%d?%d?%d?$") ~= nil
end

--- What is wrong with the call; facts are nil when the number is none.
local function violations_of(at, facts, config)
  if not facts then return json.array { "invalid_number" } end
  local found = json.array {}
  if config.consent_required and not facts.consent then found[#found + 1] = "no_consent" end
  if facts.do_not_call then found[#found + 1] = "do_not_call" end
  if not at then
    found[#found + 1] = "unknown_time_zone"
  elseif at.hour < config.hours_from or at.hour >= config.hours_to then
    found[#found + 1] = "outside_calling_hours"
  end
  if facts.calls >= config.max_calls then found[#found + 1] = "too_many_calls" end
  return found
end

local function look_up(event, ctx, phone)
  if not is_phone(phone) then return nil end
  local rows, err = ctx.tx:query(FACTS, phone, event.occurred_at, event.aggregate_id,
    ctx.config.window_hours)
  if not rows then error(ctx.retry(err)) end
  return rows[1]
end

local function tell(event, phone, violations)
  local passed = #violations == 0
  return events.publish {
    type = passed and "ComplianceCheckPassed" or "ComplianceViolationDetected",
    aggregate_type = "Call",
    aggregate_id = event.aggregate_id,
    payload = {
      phone = phone,
      checked = event.type,
      violations = violations,
      summary = passed and "the call may go on"
        or ("call to %s: %s"):format(phone, table.concat(violations, ", ")),
    },
  }
end

local function check_call(event, ctx)
  local phone = event.payload.to
  local zone = event.payload.time_zone or ctx.config.default_zone
  local at = time.in_zone(event.occurred_at_us, zone)
  local violations = violations_of(at, look_up(event, ctx, phone), ctx.config)
  local local_time = at and ("%02d:%02d %s"):format(at.hour, at.min, zone)

  phone = tostring(phone)
  ctx.tx:exec(REMEMBER, event.id, event.type, event.aggregate_id, phone, #violations == 0,
    table.concat(violations, ","), local_time, event.occurred_at)
  local id, err = tell(event, phone, violations)
  if not id then return ctx.retry(err) end
end

---@type moontide.Handler
return {
  description = "Checks calls for consent, calling hours, do-not-call and frequency.",
  subscribes  = { "CallCreated", "CallRouted", "ConsentGranted", "ConsentRevoked" },
  ordering    = "key",
  key         = {
    CallCreated = "payload.to", CallRouted = "payload.to",
    ConsentGranted = "payload.phone", ConsentRevoked = "payload.phone",
  },
  transaction = true,
  config      = {
    hours_from       = { type = "number", default = 8, help = "First hour of calling there." },
    hours_to         = { type = "number", default = 21, help = "Hour at which calling ends." },
    max_calls        = { type = "number", default = 3, help = "Calls to one phone in the window." },
    window_hours     = { type = "number", default = 24, help = "Length of that window." },
    consent_required = { type = "boolean", default = true, help = "No call without a consent." },
    default_zone     = { type = "string", default = "UTC", help = "Zone when none is named." },
  },

  handle = function(event, ctx)
    if event.type == "ConsentGranted" then
      return keep_consent(event, ctx, true)
    elseif event.type == "ConsentRevoked" then
      return keep_consent(event, ctx, false)
    end
    return check_call(event, ctx)
  end,
}
