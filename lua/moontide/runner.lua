--- How deliveries run: verdicts, what a run's end means, transactions, batches.
--
-- C calls serve() in a coroutine; it takes one delivery after the other. A
-- delivery in a transaction is wrapped into one here, and a batch is tried as
-- a whole and halved where it fails, until the event that fails is alone.

local host = ...

local M = {}

local debug_getmetatable = debug.getmetatable
local traceback = debug.traceback

-- Verdicts ------------------------------------------------------------------

local Verdict = {}
Verdict.__index = Verdict
Verdict.__metatable = "verdict"
function Verdict.__tostring(v) return v.kind .. (v.reason and ": " .. v.reason or "") end

local function is_verdict(value)
  return type(value) == "table" and debug_getmetatable(value) == Verdict
end

local function new(kind, class, code, reason, after)
  return setmetatable({ kind = kind, class = class, code = code, reason = reason, after = after },
                      Verdict)
end

-- Also what E's modules raise when an event must not go on.
function host.verdict(kind, reason)
  return new(kind, "permanent", nil, reason)
end

local function text_of(value)
  local ok, text = pcall(host.require("sandbox").env.tostring, value)
  if ok and type(text) == "string" then return text end
  return "an error value of type " .. type(value) .. " whose __tostring fails"
end

-- class, code, reason of whatever was given as a reason.
local function explain(value, class)
  if host.is_err(value) then return value.class, value.code, value.message end
  if type(value) == "string" then return class, nil, value end
  return class, nil, text_of(value)
end

local function made(kind, class, reason, after, what)
  local code
  if reason ~= nil then class, code, reason = explain(reason, class) end
  host.note_verdict()
  return new(kind, class, code, reason, after and host.duration(after, what) or nil)
end

local ctx = {}
M.ctx_static = ctx

function ctx.ack() return made("ack") end

function ctx.retry(reason, after)
  if reason == nil then error("ctx.retry needs a reason", 2) end
  return made("retry", "transient", reason, after, "ctx.retry")
end

function ctx.dead(reason)
  if reason == nil then error("ctx.dead needs a reason", 2) end
  return made("dead", "permanent", reason)
end

function ctx.skip(reason)
  if reason == nil then error("ctx.skip needs a reason", 2) end
  return made("skip", "permanent", reason)
end

local WEEK_MS = 7 * 24 * 3600 * 1000

function ctx.snooze(after, reason)
  local ms = host.duration(after, "ctx.snooze")
  if not ms then error("ctx.snooze needs a duration", 2) end
  if ms > WEEK_MS then error("ctx.snooze: 7 days at most", 2) end
  return made("snooze", "transient", reason, after, "ctx.snooze")
end

ctx.handler = host.handler
ctx.version = host.version
ctx.config = host.config
ctx.now = host.now
ctx.log = host.modules.log
ctx.mode = host.mode() == "perform" and "live" or "dry-run"
ctx.idempotency_key = host.idempotency_key

-- What a run's end means ------------------------------------------------------

local FORGOTTEN = "a verdict of ctx was made but neither returned nor raised"

local function parts(v)
  return v.kind, v.class, v.code, v.reason, v.after, v.traceback
end

local function bug(reason)
  return new("retry", "bug", nil, reason)
end

-- The verdict of a returned value; `is_made`: ctx made one in this run.
local function judge(value, is_made)
  if is_verdict(value) then return value end
  if value == nil then return is_made and bug(FORGOTTEN) or nil end
  return bug("handle returned a " .. type(value) .. "; return nothing or a verdict of ctx")
end

--- kind, class, code, reason, after, traceback
function M.outcome(value, is_made)
  return parts(judge(value, is_made) or new("ack"))
end

local function of_error(value)
  if is_verdict(value) then return value end
  if value == nil then return bug("nil was raised") end
  local class, code, reason = explain(value, "bug")
  return new("retry", class, code, reason)
end

function M.describe(value)
  return parts(of_error(value))
end

-- Serving -------------------------------------------------------------------

function M.serve(begin, finish, handle)
  local event, context = begin()
  while event do
    finish(handle(event, context))
    event, context = begin()
  end
end

function M.call(fn, ...)
  fn(...)
end

-- A raised value with where it was raised.
local function trace(value)
  if is_verdict(value) then return value end
  local v = of_error(value)
  v.traceback = traceback("", 2):sub(1, 8192)
  return v
end

local LOCK_NOT_AVAILABLE = "55P03"
local FENCED = "MT002"

local function of_db(err)
  return new(err.code == FENCED and "fenced" or "retry", err.class, err.code, err.message)
end

-- Waiting for another's inbox row is no attempt. Any other lock counts one: a
-- lock that is never free would else be asked for for ever.
local function of_inbox(err)
  if err.code == LOCK_NOT_AVAILABLE then
    return new("snooze", "transient", err.code, "waits for the inbox row", 200)
  end
  return of_db(err)
end

local INBOX = "INSERT INTO event_inbox (handler, event_id) VALUES ($1, $2) "
  .. "ON CONFLICT DO NOTHING RETURNING event_id"

-- True when the event is new here; false, verdict when it is not to be run.
local function enter(tx, id)
  if host.mode() == "test" then return true end
  local rows, err = tx:query(INBOX, host.handler, id)
  if not rows then return false, of_inbox(err) end
  if #rows == 0 then
    host.note_duplicate()
    return false, nil
  end
  return true
end

local function keeps(v)
  return v == nil or v.kind == "ack" or v.kind == "skip"
end

local function in_transaction(handle)
  return function(event, context)
    local id, source, partition, epoch = host.place()
    local tx, err = host.db_tx.begin()
    if not tx then return of_db(err) end
    local is_new, verdict = enter(tx, id)
    if not is_new then
      tx:rollback()
      return verdict
    end
    host.set_tx(tx:shown())
    local ok, value = xpcall(handle, trace, event, context)
    host.set_tx(nil)
    verdict = value
    if ok then verdict = judge(value, host.made_verdict()) end
    if keeps(verdict) and tx:failed() then verdict = of_db(tx:failed()) end
    if not keeps(verdict) then
      tx:rollback()
      return verdict
    end
    ok, err = tx:commit_fenced(host.handler, { source }, { partition }, { epoch })
    if not ok then return of_db(err) end
    return verdict
  end
end

-- Batches -------------------------------------------------------------------

local function settle(i, v, is_duplicate)
  v = v or new("ack")
  host.settle(i, v.kind, v.class, v.code, v.reason, v.after, v.traceback, is_duplicate or false)
end

local Batch = {}
Batch.__index = Batch

-- Later ones of a lane that failed go back unrun.
function Batch:finish(i, v, is_duplicate)
  if self.broken[self.places[i].lane] then v = new("back") end
  settle(i, v, is_duplicate)
  if not keeps(v) then self.broken[self.places[i].lane] = true end
end

function Batch:without_broken(list)
  local rest = {}
  for _, i in ipairs(list) do
    if self.broken[self.places[i].lane] then
      settle(i, new("back"))
    else
      rest[#rest + 1] = i
    end
  end
  return rest
end

local INBOX_MANY = "INSERT INTO event_inbox (handler, event_id) SELECT $1, id "
  .. "FROM unnest($2::text[]) AS id ORDER BY id ON CONFLICT DO NOTHING RETURNING event_id"

-- The events of `list` that are new, and the others; nil, verdict when the
-- database does not say.
function Batch:enter(tx, list)
  if host.mode() == "test" then return list, {} end
  local ids = {}
  for n, i in ipairs(list) do ids[n] = self.places[i].id end
  local rows, err = tx:query(INBOX_MANY, host.handler, host.require("db").array(ids, "text"))
  if not rows then return nil, of_inbox(err) end
  local new_ids, fresh, known = {}, {}, {}
  for _, row in ipairs(rows) do new_ids[row.event_id] = true end
  for _, i in ipairs(list) do
    local id = self.places[i].id
    local to = new_ids[id] and fresh or known
    new_ids[id] = nil -- the same id twice in one batch
    to[#to + 1] = i
  end
  return fresh, known
end

-- The verdicts of `list` by index, from what handle_batch returned.
local function spread(value, list, is_made)
  local verdicts = {}
  if value == nil or is_verdict(value) then
    local v = judge(value, is_made)
    for _, i in ipairs(list) do verdicts[i] = v end
    return verdicts
  end
  if type(value) ~= "table" then
    return nil, bug("handle_batch returned a " .. type(value)
      .. "; return nothing, a verdict or { [i] = verdict }")
  end
  for n, v in pairs(value) do
    if type(n) ~= "number" or not list[n] or not is_verdict(v) then
      return nil, bug("handle_batch: what it returned has something else than verdicts by index")
    end
    verdicts[list[n]] = v
  end
  return verdicts
end

-- Run the handler over `list`: verdicts by index, or nil and the failure.
function Batch:run(list)
  local events = {}
  for n, i in ipairs(list) do events[n] = self.events[i] end
  host.forget_verdicts()
  local ok, value = xpcall(self.handle, trace, events, self.context)
  if not ok then
    if value.traceback then return nil, value end
    return spread(value, list, false) -- a verdict was raised: for all
  end
  return spread(value, list, host.made_verdict())
end

function Batch:fences(list)
  local sources, partitions, epochs, seen = {}, {}, {}, {}
  for _, i in ipairs(list) do
    local p = self.places[i]
    local key = p.source .. "/" .. p.partition
    if not seen[key] then
      seen[key] = true
      sources[#sources + 1] = p.source
      partitions[#partitions + 1] = p.partition
      epochs[#epochs + 1] = p.epoch
    end
  end
  return sources, partitions, epochs
end

local function all_keep(verdicts, list)
  for _, i in ipairs(list) do
    if not keeps(verdicts[i]) then return false end
  end
  return true
end

function Batch:settle_all(list, v)
  for _, i in ipairs(list) do self:finish(i, v) end
end

function Batch:halve(list, failure)
  if #list == 1 then return self:finish(list[1], failure) end
  local mid = math.floor(#list / 2)
  self:attempt({ unpack(list, 1, mid) })
  self:attempt({ unpack(list, mid + 1) })
end

function Batch:attempt_plain(list)
  local verdicts, failure = self:run(list)
  if not verdicts then return self:halve(list, failure) end
  for _, i in ipairs(list) do self:finish(i, verdicts[i]) end
end

-- What did not keep is settled alone; the others are run once more without it,
-- for its statements went with the rollback.
function Batch:again_without(list, verdicts)
  local rest = {}
  for _, i in ipairs(list) do
    if keeps(verdicts[i]) then
      rest[#rest + 1] = i
    else
      self:finish(i, verdicts[i])
    end
  end
  return self:attempt(rest)
end

function Batch:attempt_in_transaction(list)
  local tx, err = host.db_tx.begin()
  if not tx then return self:settle_all(list, of_db(err)) end
  local fresh, known = self:enter(tx, list)
  if not fresh then
    tx:rollback()
    return self:settle_all(list, known)
  end
  local verdicts, failure = {}, nil
  if #fresh > 0 then
    host.set_tx(tx:shown())
    verdicts, failure = self:run(fresh)
    host.set_tx(nil)
  end
  if verdicts and all_keep(verdicts, fresh) and tx:failed() then
    verdicts, failure = nil, of_db(tx:failed())
  end
  if not verdicts then
    tx:rollback()
    return self:halve(list, failure)
  end
  if not all_keep(verdicts, fresh) then
    tx:rollback()
    return self:again_without(list, verdicts)
  end
  local ok, commit_err = tx:commit_fenced(host.handler, self:fences(list))
  if not ok then return self:settle_all(list, of_db(commit_err)) end
  local is_known = {}
  for _, i in ipairs(known) do is_known[i] = true end
  for _, i in ipairs(list) do self:finish(i, verdicts[i], is_known[i]) end
end

function Batch:attempt(list)
  list = self:without_broken(list)
  if #list == 0 then return end
  if self.is_transaction then return self:attempt_in_transaction(list) end
  return self:attempt_plain(list)
end

function M.run_batch(events, context, handle)
  local self = setmetatable({ events = events, context = context, handle = handle, places = {},
                              broken = {}, is_transaction = host.is_transaction }, Batch)
  local list = {}
  for i = 1, #events do
    local id, source, partition, epoch, lane = host.place(i)
    self.places[i] = { id = id, source = source, partition = partition, epoch = epoch, lane = lane }
    list[i] = i
  end
  self:attempt(list)
end

-- The handler's table ---------------------------------------------------------

function M.adopt(handler)
  local functions = {}
  for _, name in ipairs { "handle", "handle_batch", "init", "on_unload" } do
    local fn = rawget(handler, name)
    if type(fn) == "function" then functions[name] = fn end
  end
  if host.is_transaction then host.require "db" end
  local handle = functions.handle_batch or functions.handle
  if host.is_transaction and not functions.handle_batch then handle = in_transaction(handle) end
  return handle, functions
end

return M
