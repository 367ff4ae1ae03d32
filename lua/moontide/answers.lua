--- In the VM of a handler under test: what its effects are answered with.
-- Every call gets a copy, for the caller may change what it gets.

local host = ...

local json = host.require "json"

local texts = {}

local function plain(value)
  if host.values.type(value) ~= "table" then return value end
  local copy = {}
  for key, v in host.values.pairs(value) do copy[key] = plain(v) end
  return copy
end

local M = {}

function M.set(name, text)
  texts[name] = text
end

function M.get(name)
  local text = texts[name]
  if not text then return nil, nil end
  local answer = plain(json.decode(text))
  local err = answer.err
  if err then err = host.err(err.class or "transient", err.code, err.message or "") end
  return answer.result, err
end

return M
