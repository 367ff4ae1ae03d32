--- How deliveries run: verdicts, what a run's end means, transactions, batches.
--
-- C calls serve() in a coroutine; it takes one delivery after the other. A batch
-- is tried as a whole and halved where it fails, until the event that fails is
-- alone. Deliveries in a transaction share one (a batch of handle's runs) when
-- SQL is all that the handler may do; else each has its own, for what left the
-- database would be done again when another one failed.

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

-- serialization_failure, deadlock_detected: others were in the way, and the
-- database chose this transaction to give up. Not the delivery's fault.
local IN_THE_WAY = { ["40001"] = true, ["40P01"] = true }

local function kind_of(v)
  if v.kind == "retry" and IN_THE_WAY[v.code] then return "again" end
  return v.kind
end

local function parts(v)
  return kind_of(v), v.class, v.code, v.reason, v.after, v.traceback
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

-- A database without disk, memory or connections (class 53) says something of
-- itself and nothing of the event: it is tried again, and that is no attempt.
local function failed(class, code, reason)
  if code and code:sub(1, 2) == "53" then
    return new("snooze", class, code, reason, math.random(500, 1500))
  end
  return new("retry", class, code, reason)
end

local function of_error(value)
  if is_verdict(value) then return value end
  if value == nil then return bug("nil was raised") end
  return failed(explain(value, "bug"))
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
  if err.code == FENCED then return new("fenced", err.class, err.code, err.message) end
  return failed(err.class, err.code, err.message)
end

-- Waiting for another's inbox row is no attempt. Any other lock counts one: it
-- is the handler's to know how long it may be held.
local function of_inbox(err)
  if err.code == LOCK_NOT_AVAILABLE then
    return new("again", "transient", err.code, "waits for the inbox row")
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

-- What a run in a transaction says when a statement failed in it: an ack could
-- not commit, and a retry in the handler's own words hides whose fault it was.
local function blame(v, err)
  if err and (keeps(v) or v.kind == "retry" and IN_THE_WAY[err.code]) then return of_db(err) end
  return v
end

local function in_transaction(handle)
  return function(event, context)
    local id = host.place()
    local source, partition, epoch = host.fence()
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
    verdict = blame(verdict, tx:failed())
    if not keeps(verdict) then
      tx:rollback()
      return verdict
    end
    ok, err = tx:commit_fenced(host.handler, { source }, { partition }, { epoch })
    if not ok then return of_db(err) end
    return verdict
  end
end

-- In a Kafka transaction what a delivery gives out goes to the host at its end,
-- and only when that is a good one. Where the host has no room for it, nothing
-- is wrong with the delivery.
local ROOM_MS = 500

local function of_host(err)
  if err.code == "outputs_full" then
    return new("snooze", err.class, err.code, err.message, ROOM_MS)
  end
  return failed(err.class, err.code, err.message)
end

local function in_kafka_transaction(handle)
  return function(event, context)
    host.collect_outputs()
    local ok, value = xpcall(handle, trace, event, context)
    local verdict = value
    if ok then verdict = judge(value, host.made_verdict()) end
    if not keeps(verdict) then return verdict end
    local given, err = host.give_outputs()
    if not given then return of_host(err) end
    return verdict
  end
end

-- Batches -------------------------------------------------------------------

local function settle(i, v, is_duplicate)
  v = v or new("ack")
  host.settle(i, kind_of(v), v.class, v.code, v.reason, v.after, v.traceback, is_duplicate or false)
end

local Batch = {}
Batch.__index = Batch

-- Later ones of a lane that failed go back unrun.
function Batch:finish(i, v, is_duplicate)
  if self.broken[self.lanes[i]] then v = new("back") end
  settle(i, v, is_duplicate)
  if not keeps(v) then self.broken[self.lanes[i]] = true end
end

function Batch:without_broken(list)
  local rest = {}
  for _, i in ipairs(list) do
    if self.broken[self.lanes[i]] then
      settle(i, new("back"))
    else
      rest[#rest + 1] = i
    end
  end
  return rest
end

-- The rows of the inbox go in before the handler's statements, in one of two
-- ways. Carefully: it is waited for which of them are new, and the handler sees
-- only those. Confidently, where all that a handler may do is SQL in its
-- transaction: they are sent and not waited for; one that is there fails the
-- transaction, nothing has happened then, and it is tried again carefully.
local INBOX_MANY = "INSERT INTO event_inbox (handler, event_id) SELECT $1, id "
  .. "FROM unnest($2::text[]) AS id ORDER BY id"
local INBOX_NEW = INBOX_MANY .. " ON CONFLICT DO NOTHING RETURNING event_id"

local UNIQUE_VIOLATION = "23505"

function Batch:ids(list)
  local ids = {}
  for n, i in ipairs(list) do ids[n] = self.event_ids[i] end
  return host.require("db").array(ids, "text")
end

function Batch:enter_carefully(tx, list)
  local rows, err = tx:query(INBOX_NEW, host.handler, self:ids(list))
  if not rows then return nil, of_inbox(err) end
  local new_ids, fresh, known = {}, {}, {}
  for _, row in ipairs(rows) do new_ids[row.event_id] = true end
  for _, i in ipairs(list) do
    local id = self.event_ids[i]
    local to = new_ids[id] and fresh or known
    new_ids[id] = nil -- the same id twice in one batch
    to[#to + 1] = i
  end
  return fresh, known
end

-- The events of `list` to run, and those known as done; nil, verdict when the
-- database does not say.
function Batch:enter(tx, list)
  if host.mode() == "test" then return list, {} end
  if self.is_careful then return self:enter_carefully(tx, list) end
  local ok, err = tx:enter(INBOX_MANY, host.handler, self:ids(list))
  if not ok then return nil, of_db(err) end
  return list, {}
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

-- Run handle_batch over `list`: verdicts by index, or nil and the failure.
function Batch:run_together(list)
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

-- Run handle for each of `list`, up to the first that does not keep: its place
-- in the list comes third.
function Batch:run_each(list, tx)
  local verdicts = {}
  for n, i in ipairs(list) do
    host.current(i)
    local ok, value = xpcall(self.handle, trace, self.events[i], self.context)
    local v = value
    if ok then v = judge(value, host.made_verdict()) end
    v = blame(v, tx:failed())
    host.current(nil)
    if not keeps(v) then return nil, v, n end
    verdicts[i] = v
  end
  return verdicts
end

-- Both, with ctx.tx.
function Batch:run_in(tx, list)
  if #list == 0 then return {} end
  host.set_tx(tx:shown())
  local verdicts, failure, at
  if self.is_each then
    verdicts, failure, at = self:run_each(list, tx)
  else
    verdicts, failure = self:run_together(list)
  end
  host.set_tx(nil)
  return verdicts, failure, at
end

function Batch:fences(list)
  local sources, partitions, epochs, seen = {}, {}, {}, {}
  for _, i in ipairs(list) do
    local of_source = seen[self.sources[i]] or {}
    seen[self.sources[i]] = of_source
    if not of_source[self.partitions[i]] then
      of_source[self.partitions[i]] = true
      local n = #sources + 1
      sources[n], partitions[n], epochs[n] = host.fence(i)
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

-- It is known which one failed: those before it are well by themselves, those
-- behind it have not run.
function Batch:split(list, at, failure)
  self:attempt({ unpack(list, 1, at - 1) })
  self:finish(list[at], failure)
  self:attempt({ unpack(list, at + 1) })
end

function Batch:attempt_plain(list)
  local verdicts, failure = self:run_together(list)
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

local function joined(first, second)
  if #first == 0 then return second end
  local all = {}
  for _, i in ipairs(first) do all[#all + 1] = i end
  for _, i in ipairs(second) do all[#all + 1] = i end
  return all
end

-- The inbox knows some of them, or somebody else is at them right now.
function Batch:again_carefully(list, err)
  if err.code ~= UNIQUE_VIOLATION then return self:settle_all(list, of_inbox(err)) end
  self.is_careful = true
  return self:attempt(list)
end

local function is_contention(code)
  return IN_THE_WAY[code] or code == LOCK_NOT_AVAILABLE
end

-- Two transactions that hold rows of several deliveries may wait for each other
-- where those of one delivery would not: nobody's fault, and not done again.
function Batch:part(list)
  host.stop_sharing()
  for _, i in ipairs(list) do self:attempt({ i }) end
end

-- What to do with `list` when its transaction must not commit; nil when it may.
local function objection(tx, list, verdicts, failure, at)
  local refused = tx:refused(not verdicts)
  if refused then return "again_carefully", list, refused end
  if at and #list > 1 and is_contention(failure.code) then return "part", list end
  if at then return "split", list, at, failure end
  local err = tx:failed()
  if err and IN_THE_WAY[err.code] then return "halve", list, of_db(err) end
  if verdicts and not all_keep(verdicts, list) then return "again_without", list, verdicts end
  if verdicts and err then verdicts, failure = nil, of_db(err) end
  if not verdicts then return "halve", list, failure end
end

-- A COMMIT that failed is nobody's in particular.
function Batch:uncommitted(tx, list, partitions, err)
  local refused = tx:refused()
  if refused then return self:again_carefully(list, refused) end
  if self.is_each and #list > 1 and is_contention(err.code) then return self:part(list) end
  if err.code == FENCED and #partitions > 1 then return self:halve(list, of_db(err)) end
  return self:settle_all(list, of_db(err))
end

function Batch:attempt_in_transaction(list)
  local tx, err = host.db_tx.begin()
  if not tx then return self:settle_all(list, of_db(err)) end
  local fresh, known = self:enter(tx, list)
  if not fresh then
    tx:rollback()
    return self:settle_all(list, known)
  end
  local verdicts, failure, at = self:run_in(tx, fresh)
  list = joined(known, fresh)
  local method, a, b, c = objection(tx, list, verdicts, failure, at and #known + at)
  if method then
    tx:rollback()
    return self[method](self, a, b, c)
  end
  local sources, partitions, epochs = self:fences(list)
  local ok, commit_err = tx:commit_fenced(host.handler, sources, partitions, epochs)
  if not ok then return self:uncommitted(tx, list, partitions, commit_err) end
  for _, i in ipairs(known) do self:finish(i, nil, true) end
  for _, i in ipairs(fresh) do self:finish(i, verdicts[i]) end
end

function Batch:attempt(list)
  list = self:without_broken(list)
  if #list == 0 then return end
  if self.is_transaction then return self:attempt_in_transaction(list) end
  return self:attempt_plain(list)
end

function M.run_batch(events, context, handle)
  local self = setmetatable({
    events = events, context = context, handle = handle, broken = {},
    event_ids = {}, lanes = {}, sources = {}, partitions = {},
    is_transaction = host.is_transaction, is_each = host.is_grouped,
    is_careful = host.mode() ~= "perform" or not host.is_sql_only,
  }, Batch)
  local list = {}
  for i = 1, #events do
    self.event_ids[i], self.lanes[i], self.sources[i], self.partitions[i] = host.place(i)
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
  if host.is_kafka_transaction then host.require "kafka" end
  local handle = functions.handle_batch or functions.handle
  if host.is_transaction and not functions.handle_batch and not host.is_grouped then
    handle = in_transaction(handle)
  end
  if host.is_kafka_transaction then handle = in_kafka_transaction(handle) end
  return handle, functions
end

return M
