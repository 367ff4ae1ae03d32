--- The environment of handlers, built from nothing: every function in it was
-- put there by name. Library tables are copies, so that a handler can break
-- its own only. What takes a function (sort, gsub) is written in Lua: waiting
-- works inside its callbacks and nested calls cost no C stack.

local host = ...

local values, pattern = host.values, host.pattern

local M = {}

local env = {}
M.env = env
env._G = env
env._VERSION = _VERSION

-- Basic functions -----------------------------------------------------------

for _, name in ipairs { "assert", "error", "pcall", "select", "tonumber", "unpack",
                        "rawequal" } do
  env[name] = _G[name]
end
for _, name in ipairs { "pairs", "ipairs", "next", "rawget", "rawset", "type" } do
  env[name] = values[name]
end

-- No hook runs inside an error handler of an error that a hook raised: a killed
-- run gets to see no handler of its own any more.
local raw_xpcall = xpcall

function env.xpcall(fn, handler, ...)
  if type(handler) ~= "function" then
    error("bad argument #2 to 'xpcall' (function expected)", 2)
  end
  return raw_xpcall(fn, function(err)
    if host.is_killed() then return err end
    return handler(err)
  end, ...)
end

local debug_getmetatable = debug.getmetatable
local raw_tostring = tostring

--- In Lua, so that a __tostring may wait and nests without C.
function env.tostring(...)
  if select("#", ...) == 0 then
    error("bad argument #1 to 'tostring' (value expected)", 2)
  end
  local value = ...
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "table" then
    local mt = debug_getmetatable(value)
    local fn = mt and rawget(mt, "__tostring")
    if fn then return fn(value) end
  elseif kind == "cdata" or kind == "userdata" then
    local text = values.special(value)
    if text then return text end
  end
  return raw_tostring(value)
end

function env.getmetatable(value)
  if values.type(value) ~= "table" then return nil end
  return getmetatable(value)
end

function env.setmetatable(value, mt)
  if type(value) ~= "table" then
    error("bad argument #1 to 'setmetatable' (table expected, got " .. values.type(value) .. ")", 2)
  end
  if type(mt) == "table" and rawget(mt, "__gc") ~= nil then
    error("a handler cannot have finalisers (__gc)", 2)
  end
  return setmetatable(value, mt)
end

function env.print(...)
  local parts = {}
  for i = 1, select("#", ...) do parts[i] = env.tostring((select(i, ...))) end
  host.modules.log.info(table.concat(parts, "\t"))
end

-- Libraries -----------------------------------------------------------------

local function copy(from, names)
  local to = {}
  for _, name in ipairs(names) do to[name] = from[name] end
  return to
end

env.math = copy(math, {
  "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cosh", "deg", "exp", "floor", "fmod",
  "frexp", "ldexp", "log", "log10", "max", "min", "modf", "pow", "rad", "random", "randomseed",
  "sin", "sinh", "sqrt", "tan", "tanh", "huge", "pi",
})
math.randomseed(host.seed())

env.bit = copy(require "bit", {
  "tobit", "tohex", "bnot", "band", "bor", "bxor", "lshift", "rshift", "arshift", "rol", "ror",
  "bswap",
})

env.os = copy(os, { "time", "clock", "difftime" })

-- strftime of the C library takes any letter; only what the standard names.
function env.os.date(format, time)
  format = format == nil and "%c" or format
  if type(format) ~= "string" then error("os.date takes a format", 2) end
  local body = format:gsub("^!", "")
  if body:sub(1, 2) ~= "*t" then
    for letter in body:gmatch("%%(.?)") do
      if not ("aAbBcdHIjmMpSUwWxXyYZ%"):find(letter, 1, true) or letter == "" then
        error("os.date: unknown conversion %" .. letter, 2)
      end
    end
  end
  if time ~= nil and (type(time) ~= "number" or time ~= time or math.abs(time) > 2 ^ 47) then
    error("os.date: time out of range", 2)
  end
  return os.date(format, time)
end

-- table: insert bounds its position (the original walks there), sort is ours.
local tab = copy(table, { "concat", "maxn" })
env.table = tab

function tab.insert(list, ...)
  local n = select("#", ...)
  if type(list) ~= "table" then
    error("bad argument #1 to 'insert' (table expected, got " .. values.type(list) .. ")", 2)
  end
  if n == 1 then
    list[#list + 1] = (...)
    return
  end
  local at, value = ...
  if n ~= 2 then error("wrong number of arguments to 'insert'", 2) end
  if type(at) ~= "number" or at < 1 or at > #list + 1 then
    error("bad argument #2 to 'insert' (position out of bounds)", 2)
  end
  return table.insert(list, at, value)
end

function tab.remove(list, at)
  if type(list) ~= "table" then
    error("bad argument #1 to 'remove' (table expected, got " .. values.type(list) .. ")", 2)
  end
  if at ~= nil and (type(at) ~= "number" or at < 0 or at > #list + 1) then
    error("bad argument #2 to 'remove' (position out of bounds)", 2)
  end
  if at == nil then return table.remove(list) end
  return table.remove(list, at)
end

if table.move then tab.move = table.move end

local function less(a, b) return a < b end

-- Insertion for short runs, merging for the rest: stable, and safe with any
-- comparison function.
local function merge_sort(list, buffer, from, to, before)
  if to - from < 12 then
    for i = from + 1, to do
      local value, j = list[i], i - 1
      while j >= from and before(value, list[j]) do
        list[j + 1] = list[j]
        j = j - 1
      end
      list[j + 1] = value
    end
    return
  end
  local mid = from + math.floor((to - from) / 2)
  merge_sort(list, buffer, from, mid, before)
  merge_sort(list, buffer, mid + 1, to, before)
  for i = from, mid do buffer[i] = list[i] end
  local i, j, k = from, mid + 1, from
  while i <= mid and j <= to do
    if before(list[j], buffer[i]) then
      list[k], j = list[j], j + 1
    else
      list[k], i = buffer[i], i + 1
    end
    k = k + 1
  end
  while i <= mid do
    list[k], i, k = buffer[i], i + 1, k + 1
  end
end

function tab.sort(list, before)
  if type(list) ~= "table" then
    error("bad argument #1 to 'sort' (table expected, got " .. values.type(list) .. ")", 2)
  end
  if before ~= nil and type(before) ~= "function" then
    error("bad argument #2 to 'sort' (function expected)", 2)
  end
  merge_sort(list, {}, 1, #list, before or less)
end

-- string: the pattern functions have a budget of steps, see pattern.c.
local str = copy(string, { "byte", "char", "format", "len", "lower", "rep", "reverse", "sub",
                           "upper" })
env.string = str
str.find = pattern.find
str.match = pattern.match

function str.gmatch(s, p)
  if type(s) == "number" then s = raw_tostring(s) end
  if type(s) ~= "string" or (type(p) ~= "string" and type(p) ~= "number") then
    error("gmatch takes a string and a pattern", 2)
  end
  local at, len = 1, #s
  local function advance(first, last, capture, ...)
    if not first then
      at = len + 2
      return nil
    end
    at = last >= first and last + 1 or first + 1
    if capture == nil then return s:sub(first, last) end
    return capture, ...
  end
  return function()
    if at > len + 1 then return nil end
    return advance(pattern.find(s, p, at, false, true))
  end
end

local function replacement(repl, whole, first, ...)
  local value
  if first == nil then first = whole end
  if type(repl) == "function" then
    value = repl(first, ...)
  else
    value = repl[first]
  end
  if value == nil or value == false then return whole end
  if type(value) ~= "string" and type(value) ~= "number" then
    error("invalid replacement value (a " .. values.type(value) .. ")", 3)
  end
  return value
end

local concat = table.concat

local function gsub_with(s, p, repl, limit)
  local out, n, at, len = {}, 0, 1, #s
  local function one(first, last, ...)
    if not first then return false end
    n = n + 1
    out[#out + 1] = s:sub(at, first - 1)
    out[#out + 1] = replacement(repl, s:sub(first, last), ...)
    if last >= first then
      at = last + 1
    else
      out[#out + 1] = s:sub(first, first)
      at = first + 1
    end
    return true
  end
  local is_anchored = p:sub(1, 1) == "^"
  while n < limit and at <= len + 1 and one(pattern.find(s, p, at)) do
    if is_anchored then break end
  end
  out[#out + 1] = s:sub(at)
  return concat(out), n
end

function str.gsub(s, p, repl, limit)
  if type(s) == "number" then s = raw_tostring(s) end
  if type(s) ~= "string" then
    error("bad argument #1 to 'gsub' (string expected, got " .. values.type(s) .. ")", 2)
  end
  if type(p) == "number" then p = raw_tostring(p) end
  if type(p) ~= "string" then
    error("bad argument #2 to 'gsub' (string expected, got " .. values.type(p) .. ")", 2)
  end
  local kind = values.type(repl)
  if kind == "string" or kind == "number" then return pattern.gsub(s, p, repl, limit) end
  if kind ~= "function" and kind ~= "table" then
    error("bad argument #3 to 'gsub' (string/function/table expected)", 2)
  end
  return gsub_with(s, p, repl, limit or math.huge)
end

-- ("x"):upper() finds our functions first: the modules call methods, too, and a
-- handler that changes its `string` changes no check of theirs. What it adds to
-- `string` is found behind them. No one finds the metatable.
local methods = {}
for name, fn in pairs(str) do methods[name] = fn end
setmetatable(methods, { __index = str })
local string_mt = debug_getmetatable("")
string_mt.__index = methods
string_mt.__metatable = false

-- Coroutines ----------------------------------------------------------------

-- A wait of ours passes through the handler's own coroutines: the wrapped
-- resume sees it by its first value and hands it on.
local API_YIELD = host.api_yield
local MAX_NESTED = 100
local raw_resume, raw_yield, running = coroutine.resume, coroutine.yield, coroutine.running
-- Depth of the coroutines that the handler made; a delivery's own is not here.
local nesting = setmetatable({}, { __mode = "k" })
-- Those in a call of ours: only the delivery that called may go on with them.
local waiting = setmetatable({}, { __mode = "k" })

local co = { status = coroutine.status, running = coroutine.running }
env.coroutine = co

function co.create(fn)
  local thread = coroutine.create(fn)
  nesting[thread] = 0
  return thread
end

local function answer(thread, ...)
  waiting[thread] = nil
  return raw_resume(thread, ...)
end

local function pass_on(thread, ok, first, ...)
  if ok and first == API_YIELD then
    waiting[thread] = true
    return pass_on(thread, answer(thread, raw_yield(first)))
  end
  return ok, first, ...
end

function co.resume(thread, ...)
  if type(thread) ~= "thread" then
    error("bad argument #1 to 'resume' (coroutine expected)", 2)
  end
  if not nesting[thread] then return false, "cannot resume the coroutine of a delivery" end
  if waiting[thread] then return false, "the coroutine waits for a call" end
  local current = running()
  local depth = (current and nesting[current] or 0) + 1
  if depth > MAX_NESTED then return false, "too many nested coroutines" end
  nesting[thread] = depth
  return pass_on(thread, raw_resume(thread, ...))
end

function co.yield(...)
  local current = running()
  if not (current and nesting[current]) then
    error("attempt to yield from outside a coroutine of the handler's own", 2)
  end
  return raw_yield(...)
end

local function unwrap(ok, first, ...)
  if not ok then error(first, 0) end
  return first, ...
end

function co.wrap(fn)
  local thread = co.create(fn)
  return function(...) return unwrap(co.resume(thread, ...)) end
end

-- Modules -------------------------------------------------------------------

local loaded, loading = {}, {}

-- A copy, for the modules use each other: what a handler changes is its own.
local function api_module(name)
  if not host.api_modules[name] then
    error(("module 'moontide.%s' does not exist"):format(name), 3)
  end
  local own = {}
  for key, value in pairs(host.require(name)) do own[key] = value end
  return own
end

local function user_module(name)
  if host.phase() ~= "load" then
    error(("require '%s' cannot be called in %s (only in: loading)"):format(name, host.phase()), 3)
  end
  if loading[name] then error(("module '%s' requires itself"):format(name), 3) end
  local text, chunk = host.module_source(name)
  if not text then error(("module '%s' not found: %s"):format(name, chunk), 3) end
  local fn, err = host.load_text(text, chunk, env)
  if not fn then error(err, 0) end
  loading[name] = true
  local value = fn(name)
  loading[name] = nil
  return value == nil and true or value
end

function env.require(name)
  if type(name) ~= "string" then error("require takes a name", 2) end
  local value = loaded[name]
  if value ~= nil then return value end
  local short = name:match("^moontide%.([%w_]+)$")
  value = short and api_module(short) or user_module(name)
  loaded[name] = value
  return value
end

--- Run the handler's file; returns what it returned.
function M.run_main()
  local text, chunk = host.main_source()
  local fn, err = host.load_text(text, chunk, env)
  if not fn then error(err, 0) end
  return fn()
end

return M
