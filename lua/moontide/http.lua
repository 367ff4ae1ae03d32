--- moontide.http: requests to what the handler's `allow.http` names.
--
-- An answer is an answer whatever its status; only what brought none is an
-- error. Redirects are not followed. Everything that may change something
-- carries an Idempotency-Key that stays the same over retries.

local host = ...

local prim = host.http
local json = host.require "json"

local M = {}

local OPTIONS = { json = true, body = true, form = true, headers = true, timeout = true,
                  idempotency_key = true, method = true, url = true }

local SAFE_METHODS = { GET = true, HEAD = true, OPTIONS = true }


---@class moontide.http.Response
local Response = {}
Response.__index = Response


function Response:json()
  local value, err = json.decode(self.body)
  if err then
    return nil, host.err("permanent", "json", "the answer is not JSON: " .. tostring(err))
  end
  return value
end


local function response(result)
  result.status = result.status or 200
  result.headers = result.headers or {}
  result.body = result.body or (result.json and json.encode(result.json)) or ""
  result.json = nil
  return setmetatable(result, Response)
end


-- Sorted, so that the same form gives the same bytes and signature.
local function encode_form(form)
  local keys, parts = {}, {}
  for key in host.pairs(form) do keys[#keys + 1] = tostring(key) end
  table.sort(keys)
  for i, key in ipairs(keys) do
    parts[i] = prim.escape(key) .. "=" .. prim.escape(tostring(form[key]))
  end
  return table.concat(parts, "&")
end


local function body_of(options)
  if options.json ~= nil then return json.encode(options.json), "application/json" end
  if options.form ~= nil then
    return encode_form(options.form), "application/x-www-form-urlencoded"
  end
  return options.body
end


local function check(method, url, options, level)
  if type(method) ~= "string" or not method:find("^%u+$") then
    error("http.request needs a method such as \"POST\"", level)
  end
  if type(url) ~= "string" then error("http." .. method:lower() .. " needs a url", level) end
  if type(options) ~= "table" then error("the options of a request are a table", level) end
  for key in pairs(options) do
    if not OPTIONS[key] then error(("unknown request option %s"):format(tostring(key)), level) end
  end
  local body = options.body
  if body ~= nil and type(body) ~= "string" and type(body) ~= "number" then
    error("the body of a request is text (json= and form= take tables)", level)
  end
end


-- They say whom a request is for and where it ends, which allow.http and the
-- client decide.
local NOT_GIVEN = { host = true, ["content-length"] = true, ["transfer-encoding"] = true }


local function bad_header(message, name)
  return nil, host.err("permanent", "bad_header", message:format(name))
end


-- "Name: value" lines, or nil and an error. libcurl writes "Name;" as a header
-- without a value, and takes "Name:" for one to leave out.
local function header_lines(options, content_type, key)
  local lines, seen = {}, {}
  for name, value in host.pairs(options.headers or {}) do
    name, value = tostring(name), tostring(value)
    if value:find("[\r\n%z]") then return bad_header("the header %s has a line break", name) end
    if not name:find("^[%w!#$%%&'*+%-.^_`|~]+$") or NOT_GIVEN[name:lower()] then
      return bad_header("the header %s cannot be given", name)
    end
    seen[name:lower()] = true
    lines[#lines + 1] = value:find("%S") and name .. ": " .. value or name .. ";"
  end
  if content_type and not seen["content-type"] then
    lines[#lines + 1] = "Content-Type: " .. content_type
  end
  if key and not seen["idempotency-key"] then lines[#lines + 1] = "Idempotency-Key: " .. key end
  local event = host.event()
  local trace = event and event.metadata and event.metadata.traceparent
  if type(trace) == "string" and not seen.traceparent and not trace:find("[\r\n%z]") then
    lines[#lines + 1] = "traceparent: " .. trace
  end
  table.sort(lines)
  return lines
end


local function describe(method, url, options, key)
  return { method = method, url = url, json = options.json, body = options.body,
           form = options.form, headers = options.headers, idempotency_key = key }
end


local function perform(method, url, options)
  local key = options.idempotency_key
  if not key and not SAFE_METHODS[method] then key = host.idempotency_key() end
  local args = host.mode() ~= "perform" and describe(method, url, options, key) or nil
  local answered, result, err = host.effect("http", "http." .. method:lower(), args)
  if answered then
    if err ~= nil then return nil, err end
    return response(result or {})
  end
  local body, content_type = body_of(options)
  local lines, bad = header_lines(options, content_type, key)
  if not lines then
    host.effect_done("http", false)
    return nil, bad
  end
  local timeout = options.timeout and host.duration(options.timeout, "timeout") or nil
  result, err = prim.perform(method, url, lines, body, timeout)
  host.effect_done("http", err == nil)
  if not result then return nil, err end
  return response(result)
end


--- Any method: http.request{ method=, url=, json= | body= | form=, … }.
function M.request(options)
  if type(options) ~= "table" then error("http.request takes a table", 2) end
  host.check("http.request")
  check(options.method or "GET", options.url, options, 3)
  return perform(options.method or "GET", options.url, options)
end


for _, name in ipairs { "get", "post", "put", "patch", "delete" } do
  M[name] = function(url, options)
    host.check("http." .. name)
    check(name:upper(), url, options or {}, 3)
    return perform(name:upper(), url, options or {})
  end
end


return M
