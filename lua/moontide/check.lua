--- Reads the table that a handler file returned, strictly: every field's type
-- and range, no unknown key, and what the settings override. The result is the
-- declaration of the bundle; an error names file, line and field.

local host = ...

local json = host.require "json"

local values = host.values
local rawtype = type

local Check = {}
Check.__index = Check

-- Messages ------------------------------------------------------------------

local function distance(a, b)
  local row = {}
  for j = 0, #b do row[j] = j end
  for i = 1, #a do
    local last = row[0]
    row[0] = i
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      last, row[j] = row[j], math.min(row[j] + 1, row[j - 1] + 1, last + cost)
    end
  end
  return row[#b]
end

local function nearest(word, known)
  local best, best_distance
  for name in pairs(known) do
    local d = distance(word, name)
    if not best or d < best_distance or (d == best_distance and name < best) then
      best, best_distance = name, d
    end
  end
  return best
end

-- The line where a field is written, for the author's eye.
function Check:line_of(field)
  local last = field:match("([%w_]+)$") or field
  local line, returned, found = 0, nil, nil
  for text in (self.source .. "\n"):gmatch("(.-)\n") do
    line = line + 1
    if text:find("^return[%s{]") then returned = line end
    if not (found and returned and found >= returned) and
      (text:find("^%s*" .. last .. "%s*=") or text:find("[{,]%s*" .. last .. "%s*=")) then
      found = line
    end
  end
  return found or returned or line
end

function Check:fail(field, message, ...)
  message = message:format(...)
  if self.setting then
    error(("%s.%s: %s"):format(self.setting, field, message), 0)
  end
  error(("%s:%d: %s: %s"):format(self.chunk, self:line_of(field), field, message), 0)
end

function Check:unknown(field, key, known)
  local name = tostring(key)
  local shown = field == "" and name or field .. "." .. name
  local hint = type(key) == "string" and nearest(key, known)
  self:fail(shown, "unknown field%s", hint and (' (did you mean "%s"?)'):format(hint) or "")
end

-- Kinds of values -----------------------------------------------------------

local function is_integer(value)
  return type(value) == "number" and value == math.floor(value)
end

function Check:integer(field, value, min, max)
  if not is_integer(value) or value < min or value > max then
    self:fail(field, "an integer from %d to %d expected", min, max)
  end
  return value
end

function Check:boolean(field, value)
  if type(value) ~= "boolean" then self:fail(field, "true or false expected") end
  return value
end

function Check:text(field, value)
  if type(value) ~= "string" then
    self:fail(field, "text expected, got a %s", values.type(value))
  end
  return value
end

function Check:choice(field, value, ...)
  local names = { ... }
  for _, name in ipairs(names) do
    if value == name then return value end
  end
  self:fail(field, '"%s" expected', table.concat(names, '", "'))
end

function Check:duration(field, value, min_ms)
  local ok, ms = pcall(host.duration, value, field)
  if not ok or not ms then
    self:fail(field, 'a duration such as "200ms" or seconds expected')
  end
  if ms < (min_ms or 0) then self:fail(field, "at least %dms", min_ms) end
  return ms
end

function Check:table(field, value)
  if values.type(value) ~= "table" then
    self:fail(field, "a table expected, got a %s", values.type(value))
  end
  return value
end

function Check:texts(field, value)
  if type(value) == "string" then return json.array { value } end
  local list = json.array {}
  for i, text in values.pairs(self:table(field, value)) do
    if not is_integer(i) then self:fail(field, "a list of texts expected") end
    list[i] = self:text(field, text)
  end
  return list
end

-- Fields ----------------------------------------------------------------------

local FIELDS = {}

function FIELDS.description(self, value) return self:text("description", value) end

function FIELDS.subscribes(self, value)
  local list = self:texts("subscribes", value)
  if #list == 0 then self:fail("subscribes", "at least one event type expected") end
  for _, pattern in ipairs(list) do
    if not pattern:find("^!?[%w_%-%.%*:/]+$") then
      self:fail("subscribes", '"%s" is no event type or pattern', pattern)
    end
  end
  return list
end

function FIELDS.ordering(self, value)
  return self:choice("ordering", value, "key", "partition", "none")
end

local function path(self, value)
  if not self:text("key", value):find("^[%w_]+[%w_%.]*$") then
    self:fail("key", '"%s" is no path such as "payload.phone"', value)
  end
  return value
end

function FIELDS.key(self, value)
  if type(value) == "string" then return path(self, value) end
  local keys = {}
  for event_type, text in values.pairs(self:table("key", value)) do
    keys[self:text("key", event_type)] = path(self, text)
  end
  return keys
end

function FIELDS.concurrency(self, value) return self:integer("concurrency", value, 1, 100000) end

function FIELDS.start(self, value)
  if value ~= "now" and value ~= "earliest" and
    not (type(value) == "string" and host.require("time").parse(value)) then
    self:fail("start", '"now", "earliest" or a time expected')
  end
  return value
end

local RETRY = {
  max_attempts = function(self, v) return self:integer("retry.max_attempts", v, 1, 1000) end,
  base = function(self, v) return self:duration("retry.base", v, 1), "base_ms" end,
  cap = function(self, v) return self:duration("retry.cap", v, 1), "cap_ms" end,
  jitter = function(self, v) return self:choice("retry.jitter", v, "full", "none") end,
}

local function fields(self, field, value, known)
  local result = {}
  for key, v in values.pairs(self:table(field, value)) do
    if not known[key] then self:unknown(field, key, known) end
    local checked, name = known[key](self, v)
    result[name or key] = checked
  end
  return result
end

function FIELDS.retry(self, value) return fields(self, "retry", value, RETRY) end

local BREAKER = {
  rate = function(self, v)
    if type(v) ~= "number" or v <= 0 or v > 1 then
      self:fail("breaker.rate", "a share of the calls expected, above 0 and up to 1")
    end
    return v
  end,
  calls = function(self, v) return self:integer("breaker.calls", v, 1, 1000000) end,
  window = function(self, v) return self:duration("breaker.window", v, 100), "window_ms" end,
  open = function(self, v) return self:duration("breaker.open", v, 10), "open_ms" end,
}

function FIELDS.breaker(self, value)
  if value == false then return false end
  return fields(self, "breaker", value, BREAKER)
end

-- "100/s" → the same in a form for programs.
local function rate(self, field, text)
  local n, unit = self:text(field, text):match("^(%d+)/([smh])$")
  local per_ms = ({ s = 1000, m = 60000, h = 3600000 })[unit]
  n = tonumber(n)
  if not n or n < 1 or n > 1000000 then
    self:fail(field, 'a rate such as "100/s", "30/m" or "5/h" expected')
  end
  return { events = n, per_ms = per_ms, burst = math.max(1, math.floor(n * 1000 / per_ms)) }
end

local RATE = {
  rate = function(self, v) return rate(self, "rate.rate", v) end,
  burst = function(self, v) return self:integer("rate.burst", v, 1, 1000000) end,
}

function FIELDS.rate(self, value)
  if value == false then return false end
  if type(value) == "string" then return rate(self, "rate", value) end
  local given = fields(self, "rate", value, RATE)
  if not given.rate then self:fail("rate", "rate is missing") end
  -- The host looks every 20 ms: less than twice that could not keep the rate.
  local least = math.ceil(given.rate.events * 40 / given.rate.per_ms)
  if given.burst and given.burst < least then
    self:fail("rate.burst", "at least %d for this rate", least)
  end
  given.rate.burst = given.burst or given.rate.burst
  return given.rate
end

function FIELDS.timeout(self, value) return self:duration("timeout", value, 1), "timeout_ms" end

function FIELDS.on_dead(self, value)
  return self:choice("on_dead", value, "continue", "park", "stop")
end

function FIELDS.transaction(self, value)
  if value ~= "kafka" and type(value) ~= "boolean" then
    self:fail("transaction", 'true, false or "kafka" expected')
  end
  return value
end

local BATCH = {
  max = function(self, v) return self:integer("batch.max", v, 1, 4096) end,
  wait = function(self, v) return self:duration("batch.wait", v), "wait_ms" end,
}

function FIELDS.batch(self, value)
  local batch = fields(self, "batch", value, BATCH)
  if not batch.max then self:fail("batch", "max is missing") end
  batch.wait_ms = batch.wait_ms or 0
  return batch
end

local ALLOW = {
  http = function(self, v)
    local list = self:texts("allow.http", v)
    for _, prefix in ipairs(list) do
      if not prefix:find("^https?://[^/]") and not prefix:find("^[%x:%.]+/%d+$") then
        self:fail("allow.http", '"%s" is no url prefix or network', prefix)
      end
    end
    return list
  end,
  db = function(self, v)
    if v == true or v == false then return v end
    return self:texts("allow.db", v)
  end,
  mail = function(self, v) return self:boolean("allow.mail", v) end,
  kafka = function(self, v)
    local list = self:texts("allow.kafka", v)
    for _, topic in ipairs(list) do
      if not topic:find("^[%w%._%-]+$") or #topic > 249 then
        self:fail("allow.kafka", '"%s" is no name of a topic', topic)
      end
    end
    return list
  end,
}

function FIELDS.allow(self, value) return fields(self, "allow", value, ALLOW) end

function FIELDS.jit(self, value) return self:boolean("jit", value) end

-- Functions: that they are there is all the declaration says.
for _, name in ipairs { "handle", "handle_batch", "init", "on_unload" } do
  FIELDS[name] = function(self, value)
    if type(value) ~= "function" then
      self:fail(name, "a function expected, got a %s", values.type(value))
    end
    self.has[name] = true
  end
end

-- Known to the contract, not to this version: refused, not ignored.
function FIELDS.replayable(self, value)
  if self:boolean("replayable", value) then
    self:fail("replayable", "is not supported by this version")
  end
end

for _, name in ipairs { "timers", "upcast", "on_replay" } do
  FIELDS[name] = function(self) self:fail(name, "is not supported by this version") end
end

-- config ------------------------------------------------------------------------

local DECLARATION = { type = true, required = true, secret = true, default = true, help = true }
local TYPES = { string = true, number = true, boolean = true, table = true }

local function is_declaration(value)
  if rawtype(value) ~= "table" then return false end
  local has_any = false
  for key in pairs(value) do
    if not DECLARATION[key] then return false end
    has_any = true
  end
  return has_any
end

local function declaration(self, name, value)
  if not is_declaration(value) then return { default = value, type = values.type(value) } end
  local field = "config." .. name
  local d = { default = value.default, help = value.help }
  d.type = value.type or (value.default ~= nil and values.type(value.default)) or "string"
  if not TYPES[d.type] then
    self:fail(field, 'type "string", "number", "boolean" or "table" expected')
  end
  d.required = value.required ~= nil and self:boolean(field .. ".required", value.required) or false
  d.secret = value.secret ~= nil and self:boolean(field .. ".secret", value.secret) or false
  if d.default ~= nil and values.type(d.default) ~= d.type then
    self:fail(field, "the default is a %s, not a %s", values.type(d.default), d.type)
  end
  return d
end

function FIELDS.config(self, value)
  for name, v in values.pairs(self:table("config", value)) do
    if type(name) ~= "string" or not name:find("^[%a_][%w_]*$") then
      self:fail("config", "names expected as keys")
    end
    self.config[name] = declaration(self, name, v)
  end
end

local function given(self, over, name, d)
  local value = over[name]
  local file = over[name .. "_file"]
  if value == nil and file ~= nil then
    local text, why = host.read_text(file)
    if not text then self:fail("config." .. name .. "_file", "%s", why) end
    value = d.type == "number" and tonumber(text) or text
  end
  if value == json.null then value = nil end
  return value
end

-- The values that a handler sees as ctx.config.
local function resolve_config(self, over)
  local resolved, secrets = {}, json.array {}
  for key in values.pairs(over) do
    local base = tostring(key):gsub("_file$", "")
    if not self.config[key] and not self.config[base] then
      self:unknown("config", key, self.config)
    end
  end
  for name, d in pairs(self.config) do
    local value = given(self, over, name, d)
    if value == nil then value = d.default end
    if value == nil and d.required then
      self:fail("config." .. name, "is required and not set")
    end
    if value ~= nil and values.type(value) ~= d.type then
      self:fail("config." .. name, "a %s expected, got a %s", d.type, values.type(value))
    end
    resolved[name] = value
    if d.secret then secrets[#secrets + 1] = name end
  end
  return resolved, secrets
end

-- Settings over the file ----------------------------------------------------------

local OVERRIDES = { allow = true, breaker = true, concurrency = true, config = true, enabled = true,
                    on_dead = true, rate = true, retry = true, start = true, timeout = true }

local function override(self, decl, settings)
  for key, value in values.pairs(settings) do
    if not OVERRIDES[key] then self:unknown("", key, OVERRIDES) end
    if key ~= "config" and key ~= "enabled" then
      local checked, name = FIELDS[key](self, value)
      if key == "retry" then
        for k, v in pairs(checked) do decl.retry[k] = v end
      else
        decl[name or key] = checked
      end
    end
  end
end

local function together(self, decl)
  local has = self.has
  if not has.handle and not has.handle_batch then
    self:fail("handle", "handle or handle_batch is missing")
  end
  if has.handle and has.handle_batch then
    self:fail("handle_batch", "either handle or handle_batch, not both")
  end
  if has.handle_batch and not decl.batch then
    self:fail("handle_batch", "needs batch = { max = … }")
  end
  if decl.batch and not has.handle_batch then self:fail("batch", "needs handle_batch") end
  if not decl.subscribes then self:fail("subscribes", "is missing") end
  if decl.retry.cap_ms < decl.retry.base_ms then self:fail("retry.cap", "is below retry.base") end
end

-- Positions that move with the output know places of a partition and no batches,
-- and nothing that waits beside its partition.
local function transacts(self, decl)
  if decl.transaction ~= "kafka" then return end
  if self.has.handle_batch then
    self:fail("transaction", '"kafka" needs handle: it cannot be had with handle_batch')
  end
  if decl.on_dead == "park" then
    self:fail("on_dead", '"park" cannot be had with transaction = "kafka"')
  end
end

--- `from`: source, chunk, name, settings, defaults, trust_allow.
return function(handler, from)
  local self = setmetatable({
    source = from.source, chunk = from.chunk, has = {}, config = {},
  }, Check)
  if rawtype(handler) ~= "table" then
    error(("%s:%d: a handler file returns a table, this one a %s"):format(from.chunk,
      self:line_of("return"), values.type(handler)), 0)
  end
  local decl = {
    ordering = "key", concurrency = 16, start = "now", on_dead = "continue", transaction = false,
    timeout_ms = 30000, jit = false, allow = {},
    retry = { max_attempts = from.defaults.max_attempts or 5, base_ms = 200, cap_ms = 300000,
              jitter = "full" },
  }
  for key, value in pairs(handler) do
    local check = FIELDS[key]
    if not check then self:unknown("", key, FIELDS) end
    local checked, name = check(self, value)
    if key == "retry" then
      for k, v in pairs(checked) do decl.retry[k] = v end
    elseif checked ~= nil then
      decl[name or key] = checked
    end
  end
  if not from.trust_allow then decl.allow = {} end
  together(self, decl)
  transacts(self, decl)
  self.setting = "handlers." .. from.name
  override(self, decl, from.settings)
  transacts(self, decl)
  decl.config, decl.secrets = resolve_config(self, from.settings.config or {})
  decl.has = self.has
  return json.encode(decl)
end
