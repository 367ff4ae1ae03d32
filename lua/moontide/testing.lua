--- moontide.testing and what a spec file is run with: describe, it and the
-- assertions of busted that specs here use. Handlers run as in a worker, in a
-- VM of their own; effects are remembered and answered, nothing happens.

local host = ...

local json = host.require "json"
local uuid = host.require "uuid"
local time = host.require "time"
local values = host.values
local prim = host.testing

local M = {}

-- Values ------------------------------------------------------------------

local function same(a, b)
  if a == b then return true end
  local kind = values.type(a)
  if kind ~= values.type(b) then return false end
  if kind == "cdata" or kind ~= "table" then return false end
  for key, value in values.pairs(a) do
    if not same(value, b[key]) then return false end
  end
  for key in values.pairs(b) do
    if a[key] == nil then return false end
  end
  return true
end

local function show(value, depth)
  local kind = values.type(value)
  if kind == "string" then return ("%q"):format(value) end
  if kind ~= "table" or (depth or 0) > 4 then return tostring(value) end
  local parts = {}
  for key, v in values.pairs(value) do
    local name = type(key) == "string" and key .. " = " or ""
    parts[#parts + 1] = name .. show(v, (depth or 0) + 1)
  end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

--- A lazy object as plain tables.
local function plain(value)
  if values.type(value) ~= "table" then return value end
  local copy = {}
  for key, v in values.pairs(value) do copy[key] = plain(v) end
  if host.is_array(value) then return json.array(copy) end
  return copy
end

-- Handlers under test -------------------------------------------------------

local Effects = {}
Effects.__index = Effects

function Effects:of(name)
  local found = {}
  for _, effect in ipairs(self) do
    if effect.name == name then found[#found + 1] = effect end
  end
  return found
end

local Handler = {}
Handler.__index = Handler

function M.handler(name, options)
  options = options or {}
  local config = options.config and json.encode(options.config) or "{}"
  return setmetatable({ id = prim.load(name, config, options.now) }, Handler)
end

function Handler:answer(effect, result, err)
  if type(err) == "string" then err = { class = "transient", message = err } end
  prim.answer(self.id, effect, json.encode { result = result, err = err })
end

local function envelope(event)
  return json.encode {
    id = event.id, eventType = event.type, eventVersion = event.version,
    aggregateType = event.aggregate_type, aggregateId = event.aggregate_id,
    aggregateVersion = event.aggregate_version, occurredAt = event.occurred_at,
    payload = event.payload == nil and json.null or event.payload, metadata = event.metadata,
  }
end

function Handler:run(event)
  local texts = {}
  if event[1] then
    for i, one in ipairs(event) do texts[i] = envelope(one) end
  else
    texts[1] = envelope(event)
  end
  local result = plain(json.decode(prim.run(self.id, texts)))
  local run = { verdicts = result.verdicts }
  run.effects = setmetatable({ unpack(result.effects) }, Effects)
  run.verdict, run.reason = result.verdicts[1].verdict, result.verdicts[1].reason
  run.class, run.after_ms = result.verdicts[1].class, result.verdicts[1].after_ms
  return run
end

function M.event(event_type, fields)
  local event = {
    id = uuid.v4(), type = event_type, version = 1, aggregate_type = "Test",
    aggregate_id = uuid.v4(), occurred_at = time.format(time.unix() * 1e6),
    payload = {}, metadata = {},
  }
  for key, value in pairs(fields or {}) do event[key] = value end
  return event
end

-- Assertions --------------------------------------------------------------------

local checks = {}

function checks.equal(expected, actual)
  return expected == actual,
    ("expected %s, got %s"):format(show(expected), show(actual))
end

function checks.same(expected, actual)
  return same(expected, actual), ("expected %s, got %s"):format(show(expected), show(actual))
end

checks["true"] = function(v) return v == true, "expected true, got " .. show(v) end
checks["false"] = function(v) return v == false, "expected false, got " .. show(v) end
checks["nil"] = function(v) return v == nil, "expected nil, got " .. show(v) end
checks.truthy = function(v) return not not v, "expected a true value, got " .. show(v) end
checks.falsy = function(v) return not v, "expected a false value, got " .. show(v) end

function checks.matches(pattern, text)
  return type(text) == "string" and text:find(pattern) ~= nil,
    ("expected something like %s, got %s"):format(show(pattern), show(text))
end

function checks.near(expected, actual, tolerance)
  return math.abs(expected - actual) <= tolerance,
    ("expected %s ± %s, got %s"):format(show(expected), show(tolerance), show(actual))
end

function checks.error(fn, expected)
  local ok, err = pcall(fn)
  if ok then return false, "expected an error" end
  if expected == nil then return true, "expected no error, got " .. show(err) end
  local text = tostring(err)
  return err == expected or text:gsub("^[^:]+:%d+: ", "") == expected,
    ("expected the error %s, got %s"):format(show(expected), show(err))
end

for name, alias in pairs { equals = "equal", errors = "error", match = "matches",
                           truthy = "truthy" } do
  checks[name] = checks[alias]
end
for _, kind in ipairs { "string", "number", "table", "function", "boolean" } do
  checks[kind] = function(v)
    return values.type(v) == kind, ("expected a %s, got %s"):format(kind, show(v))
  end
end

local PREFIXES = { is = false, are = false, has = false, was = false, is_not = true,
                   are_not = true, has_no = true, ["not"] = true, does_not = true, no = true }

local function assertion(negated)
  return setmetatable({}, {
    __call = function(_, value, message, ...)
      if not value then error(message or "assertion failed!", 2) end
      return value, message, ...
    end,
    __index = function(_, name)
      if PREFIXES[name] ~= nil then return assertion(negated ~= PREFIXES[name]) end
      local is_negated, check = negated, checks[name]
      if not check then
        for prefix, negates in pairs(PREFIXES) do
          local rest = name:match("^" .. prefix .. "_([%w_]+)$")
          if rest and checks[rest] then
            check, is_negated = checks[rest], negated ~= negates
          end
        end
      end
      if not check then error("assert." .. name .. " does not exist", 2) end
      return function(...)
        local ok, message = check(...)
        if ok == is_negated then
          error(is_negated and "expected otherwise: " .. name .. "(" .. show((...)) .. ")"
            or message, 2)
        end
        return ...
      end
    end,
  })
end

-- Running a spec ------------------------------------------------------------------

local results = {}
local stack = { { name = nil, before = {}, after = {} } }

local function describe(name, fn)
  stack[#stack + 1] = { name = name, before = {}, after = {} }
  fn()
  stack[#stack] = nil
end

local function full_name(name)
  local names = {}
  for _, block in ipairs(stack) do names[#names + 1] = block.name end
  names[#names + 1] = name
  return table.concat(names, " ")
end

local function run_one(fn)
  for _, block in ipairs(stack) do
    for _, before in ipairs(block.before) do before() end
  end
  fn()
  for i = #stack, 1, -1 do
    for _, after in ipairs(stack[i].after) do after() end
  end
end

local function it(name, fn)
  local ok, err = pcall(run_one, fn)
  results[#results + 1] = {
    name = full_name(name), ok = ok, error = not ok and tostring(err) or nil,
  }
end

--- The globals of a spec file, put into the handlers' environment.
function M.globals(env)
  env.describe, env.it, env.assert = describe, it, assertion(false)
  env.before_each = function(fn)
    local block = stack[#stack]
    block.before[#block.before + 1] = fn
  end
  env.after_each = function(fn)
    local block = stack[#stack]
    block.after[#block.after + 1] = fn
  end
end

function M.results()
  return json.encode(json.array(results))
end

M.plain = plain

return M
