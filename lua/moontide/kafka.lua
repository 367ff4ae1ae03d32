--- moontide.kafka: records to the topics of the handler's `allow.kafka`.
--
-- The host has the producer. A request to it is JSON with the lengths of keys,
-- values and headers, and behind it their bytes as they are.

local host = ...

local json = host.require "json"

local M = {}

local FIELDS = { topic = true, key = true, value = true, headers = true }

-- Of one record, with key and headers; what the broker takes may be less.
local MOST_BYTES = 8 * 1024 * 1024
local MOST_HEADERS = 100


local function is_allowed(topic)
  for _, name in ipairs(host.allow.kafka or {}) do
    if name == topic then return true end
  end
  return false
end


local function check(record)
  if type(record) ~= "table" then error("kafka.produce takes a table", 3) end
  for field in host.pairs(record) do
    if not FIELDS[field] then
      error(("unknown field %s of a record"):format(tostring(field)), 3)
    end
  end
  if type(record.topic) ~= "string" then error("kafka.produce needs a topic", 3) end
  if record.key ~= nil and type(record.key) ~= "string" then
    error("the key of a record is text", 3)
  end
  if type(record.value) ~= "string" and record.value ~= host.null then
    error("kafka.produce needs a value: text, or json.null for none", 3)
  end
  if record.headers ~= nil and type(record.headers) ~= "table" then
    error("headers are a table of names and texts", 3)
  end
  if not is_allowed(record.topic) then
    error(('kafka.produce needs allow = { kafka = { "%s" } }'):format(record.topic), 3)
  end
end


-- Sorted, so that the same record has the same bytes each time.
local function sorted_headers(headers)
  local names = {}
  for name, value in host.pairs(headers or {}) do
    if type(name) ~= "string" or not name:find("^[\32-\126]+$") or type(value) ~= "string" then
      error("headers are a table of names and texts", 4)
    end
    names[#names + 1] = name
  end
  if #names > MOST_HEADERS then
    error(("a record has %d headers at most"):format(MOST_HEADERS), 4)
  end
  table.sort(names)
  return names
end


-- What the host gets of it: a description, and the bytes that it speaks of; the
-- size of both, about.
local function describe(record)
  local value = record.value ~= host.null and record.value or nil
  local bytes, headers, size = { record.key or "", value or "" }, json.array {}, #record.topic
  for i, name in ipairs(sorted_headers(record.headers)) do
    headers[i] = json.array { name, #record.headers[name] }
    bytes[#bytes + 1] = record.headers[name]
    size = size + #name
  end
  bytes = table.concat(bytes)
  return json.array { record.topic, record.key and #record.key or host.null,
                      value and #value or host.null, headers }, bytes, size + #bytes
end


local function too_large(bytes)
  return host.err("permanent", "too_large", ("a record of %d bytes: %d are the most"):format(
    bytes, MOST_BYTES))
end


local function ask(description, bytes)
  local reply, err = host.call(json.encode { op = "produce",
                                             records = json.array { description } }
                               .. "\n" .. bytes)
  if not reply then return nil, err end
  return true
end


-- Transactions ----------------------------------------------------------------

-- What a delivery gives out with transaction = "kafka" waits for its end.
local MOST_OUTPUTS = 1000

--- From now on, until the delivery ends.
function host.collect_outputs()
  host.set_outputs { records = json.array {}, bytes = {}, size = 0 }
end


local function refuse_more(outputs)
  outputs.err = host.err("limit", "outputs",
    ("more than %d records or %d bytes of one delivery"):format(MOST_OUTPUTS, MOST_BYTES))
  return nil, outputs.err
end


--- Another one of the delivery's; `bytes` is what `record` speaks of.
function host.add_output(record, bytes, size)
  local outputs = host.get_outputs()
  if outputs.err then return nil, outputs.err end
  local n = #outputs.records + 1
  if n > MOST_OUTPUTS or outputs.size + size > MOST_BYTES then return refuse_more(outputs) end
  outputs.records[n] = record
  outputs.bytes[n] = bytes
  outputs.size = outputs.size + size
  return true
end


--- The delivery ends well: to the host with them. True, or nil and an error.
function host.give_outputs()
  local outputs = host.get_outputs()
  if outputs.err then return nil, outputs.err end
  if #outputs.records == 0 then return true end
  local slot, generation = host.slot()
  local reply, err = host.call(json.encode { op = "outputs", slot = slot, generation = generation,
                                             records = outputs.records }
                               .. "\n" .. table.concat(outputs.bytes))
  if not reply then return nil, err end
  return true
end


--- Write one record. True when it is stored.
---@param record moontide.kafka.Record
---@return true|nil, moontide.Error?
function M.produce(record)
  host.check("kafka.produce")
  check(record)
  local description, bytes, size = describe(record)
  local answered, result, err = host.effect("kafka", "kafka.produce", record)
  if answered then
    if err ~= nil then return nil, err end
    return result == nil or result
  end
  if size > MOST_BYTES then
    err = too_large(size)
  elseif host.get_outputs() then
    result, err = host.add_output(description, bytes, size)
  else
    result, err = ask(description, bytes)
  end
  host.effect_done("kafka", err == nil)
  return result, err
end


return M
