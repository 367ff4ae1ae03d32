--- What runs first in every VM: our modules, the handlers' environment, the
-- functions that C calls. It gets the table of primitives and returns what C
-- keeps; handlers see neither.

local host = ...

local ffi = require "ffi"

-- Ours see objects of events as tables, too.
local values = host.values
local own_env = setmetatable({
  pairs = values.pairs, ipairs = values.ipairs, next = values.next, type = values.type,
  rawget = values.rawget, rawset = values.rawset,
}, { __index = _G })

local int64, uint64 = ffi.typeof("int64_t"), ffi.typeof("uint64_t")
values.calibrate(int64(1), uint64(1))
host.start_values(
  function(high, low) return int64(high) * 0x100000000LL + int64(low) end,
  function(high, low) return uint64(high) * 0x100000000ULL + uint64(low) end)

local modules = {}
for name, module in pairs(host.modules) do modules[name] = module end

--- Another of our modules.
function host.require(name)
  local module = modules[name]
  if module == nil then
    local chunk = host.load_own(name)
    if not chunk then return nil end
    module = setfenv(chunk, own_env)(host)
    modules[name] = module
  end
  return module
end

host.pairs = values.pairs
host.null = host.modules.json.null

-- Errors as values ----------------------------------------------------------

local Err = {}
Err.__index = Err
Err.__metatable = "error"
function Err.__tostring(err)
  if err.code then return err.class .. " (" .. err.code .. "): " .. err.message end
  return err.class .. ": " .. err.message
end

function host.err(class, code, message)
  return setmetatable({ class = class, code = code, message = tostring(message) }, Err)
end

local debug_getmetatable = debug.getmetatable

function host.is_err(value)
  return type(value) == "table" and debug_getmetatable(value) == Err
end

local sandbox = host.require "sandbox"
local runner = host.require "runner"

if host.is_config then sandbox.env.os.getenv = os.getenv end
if host.testing then host.require("testing").globals(sandbox.env) end

--- The handler file's table, checked by the probe before it became a bundle.
function host.load_main()
  return sandbox.run_main()
end

--- handle as C shall call it, and the functions of the table by name.
host.adopt = runner.adopt

return {
  make_err = host.err,
  env = sandbox.env,
  serve = runner.serve,
  run_batch = runner.run_batch,
  call = runner.call,
  outcome = runner.outcome,
  describe = runner.describe,
  ctx_static = runner.ctx_static,
}
