-- Checks that every #include in src/ points down the layer table below.
-- Usage: luajit tests/lint/layers.lua [SRC]
--
-- This table is the architecture: change it in the same commit as the code,
-- and say why in docs/ARCHITECTURE.md.

local LAYERS = {
  base    = {},
  core    = { "base", "ipc" }, -- ipc for enum source_kind and messages
  ipc     = { "base" },
  kafka   = { "core", "base" },
  pg      = { "core", "base" },
  http    = { "core", "base" },
  sources = { "core", "kafka", "pg", "stores", "base" },
  stores  = { "core", "kafka", "pg", "base" },
  worker  = { "base", "ipc", "pg" },
  host    = { "base", "core", "ipc", "kafka", "pg", "http", "sources", "stores" },
  cli     = { "base", "core", "kafka", "pg", "http", "host" },
}

local function set(...)
  local s = {}
  for _, k in ipairs { ... } do s[k] = true end
  return s
end

-- A third-party header may be named only by the layers that wrap it.
local OWNERS = {
  ["ev.h"]                     = set("base", "kafka", "pg", "http", "sources", "stores", "host",
                                     "worker", "cli"),
  ["librdkafka/rdkafka.h"]     = set("kafka"),
  ["librdkafka/rdkafka_mock.h"] = set("kafka"),
  ["libpq-fe.h"]               = set("pg"),
  ["microhttpd.h"]             = set("http"),
  ["lua.h"]                    = set("worker"),
  ["lauxlib.h"]                = set("worker"),
  ["lualib.h"]                 = set("worker"),
  ["luajit.h"]                 = set("worker"),
  ["simdjson.h"]               = set("base", "worker"),
  ["curl/curl.h"]              = set("worker", "cli"),
  ["jansson.h"]                = set("base", "kafka", "stores", "sources", "host", "worker", "cli",
                                     "http"),
}

-- Besides its layer, the core may not touch the world at all.
local FORBIDDEN = {
  core = set("ev.h", "time.h", "sys/time.h", "unistd.h", "sys/socket.h", "pthread.h"),
}

local function allows(layer, target)
  if layer == target then return true end
  for _, below in ipairs(LAYERS[layer]) do
    if below == target then return true end
  end
  return false
end

local function includes(path)
  local found, n = {}, 0
  for line in io.lines(path) do
    n = n + 1
    local name = line:match('^%s*#%s*include%s*["<]([^">]+)[">]')
    if name then found[#found + 1] = { line = n, name = name } end
  end
  return found
end

local root = arg[1] or "src"
local faults, files = 0, 0

local function report(fmt, ...)
  io.stderr:write(fmt:format(...), "\n")
  faults = faults + 1
end

local function check(path, layer)
  local forbidden = FORBIDDEN[layer] or {}
  for _, inc in ipairs(includes(path)) do
    local target = inc.name:match("^(%w+)/")
    local owners = OWNERS[inc.name]
    if LAYERS[target] and not allows(layer, target) then
      report("%s:%d: %s may not include %s", path, inc.line, layer, inc.name)
    elseif (owners and not owners[layer]) or forbidden[inc.name] then
      report("%s:%d: %s may not name %s", path, inc.line, layer, inc.name)
    end
  end
end

local command = ("find %s -name '*.[ch]' -o -name '*.cc'"):format(root)
for path in io.popen(command):lines() do
  local layer = path:sub(#root + 2):match("^(%w+)/")
  files = files + 1
  if layer then                      -- files directly in src/ may see everything
    if LAYERS[layer] then
      check(path, layer)
    else
      report("%s: layers.lua does not know the layer '%s'", path, layer)
    end
  end
end

if files == 0 then report("no source file under %s", root) end
os.exit(faults == 0 and 0 or 1)
