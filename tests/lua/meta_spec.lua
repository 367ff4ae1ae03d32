-- lua/meta describes what there is, and everything that there is: its names
-- are held against the modules in Lua and the tables of functions in C.

local function read(path)
  local file = assert(io.open(path))
  local text = file:read("*a")
  file:close()
  return text
end

-- Names of `function module.name(` in a meta file, sorted.
local function described(module, receiver)
  local names = {}
  local pattern = "\nfunction " .. (receiver or module) .. "[.:]([%w_]+)%("
  for name in read("lua/meta/" .. module .. ".lua"):gmatch(pattern) do
    names[#names + 1] = name
  end
  table.sort(names)
  return names
end

local function functions_of(t)
  local names = {}
  for name, value in pairs(t) do
    if type(value) == "function" then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

-- Every luaL_Reg table of a C file as a sorted list of names.
local function tables_of(path)
  local tables = {}
  for body in read(path):gmatch("luaL_Reg %w+%[%] = (%b{})") do
    local names = {}
    for name in body:gmatch('{%s*"([%w_]+)"') do names[#names + 1] = name end
    table.sort(names)
    tables[#tables + 1] = table.concat(names, " ")
  end
  return tables
end

local host
host = {
  require = function(name)
    if name == "template_syntax" then return dofile("lua/moontide/template_syntax.lua") end
    return {}
  end,
  db = { array_mark = function() return {} end },
  http = {}, mail = {}, events = {}, mode = function() return "test" end,
}

local function load_half(name)
  return assert(loadfile("lua/moontide/" .. name .. ".lua"))(host)
end

describe("lua/meta", function()
  for _, name in ipairs { "db", "http", "mail", "events", "kafka", "template" } do
    it("describes moontide." .. name, function()
      assert.same(described(name), functions_of(load_half(name)))
    end)
  end

  it("describes what a transaction offers", function()
    load_half("db")
    local tx = host.db_tx.begin()
    assert.same(described("db", "Tx"), functions_of(debug.getmetatable(tx:shown()).__index))
  end)

  local in_c = {
    json = "json.c", text = "mod_text.c", time = "mod_time.c", timer = "mod_time.c",
    uuid = "mod_crypto.c", crypto = "mod_crypto.c", log = "mod_log.c", metric = "mod_log.c",
  }
  for name, file in pairs(in_c) do
    it("describes moontide." .. name, function()
      local names = described(name)
      assert.is_true(#names > 0)
      local wanted = table.concat(names, " ")
      local tables = tables_of("src/worker/" .. file)
      assert.message("no table of functions in " .. file .. " has exactly: " .. wanted)
        .is_true((" | " .. table.concat(tables, " | ") .. " | "):find(
          " | " .. wanted .. " | ", 1, true) ~= nil)
    end)
  end
end)
