-- Holds docs/FEATURES.md against the tree: what it calls done has a place in
-- the code and a test, and both exist.
-- Usage: luajit tests/lint/features.lua [docs/FEATURES.md]
--
-- A row is `| id | state | where | test |`. `where` and `test` are lists in
-- backticks. A place is a path; a test is one of
--     tests/unit/test_lane.c:one_at_a_time
--     tests/integration/test_kafka.py::test_restart
--     handlers/audit_spec.lua: writes one row

local STATES = { done = true, partly = true, planned = true }

local path = arg[1] or "docs/FEATURES.md"
local faults, rows = 0, 0
local texts = {}

local function report(line, fmt, ...)
  io.stderr:write(("%s:%d: "):format(path, line), fmt:format(...), "\n")
  faults = faults + 1
end

--- The text of a file, or nil when it is not there (false is remembered).
local function text_of(name)
  if texts[name] == nil then
    local file = io.open(name, "rb")
    texts[name] = file and file:read("*a") or false
    if file then file:close() end
  end
  return texts[name] or nil
end

local function exists(name)
  return os.execute(("test -e '%s'"):format(name:gsub("'", ""))) == 0
end

local function escaped(s)
  return (s:gsub("%p", "%%%0"))
end

--- Is the test `name` defined in `file`, in the manner of its language?
local function defines(file, name)
  local text = text_of(file)
  if not text then return false end
  if file:match("%.c$") then
    return text:find("static void " .. escaped(name) .. "%s*%(") ~= nil
  elseif file:match("%.py$") then
    return text:find("def " .. escaped(name) .. "%s*%(") ~= nil
  end
  return text:find('it%s*%(%s*["\']' .. escaped(name) .. '["\']') ~= nil
end

local function check_test(line, ref)
  local file, name = ref:match("^(%S-%.py)::([%w_]+)$")
  if not file then file, name = ref:match("^(%S-%.c):([%w_]+)$") end
  if not file then file, name = ref:match("^(%S-%.lua):%s*(.+)$") end
  if not file then
    report(line, "'%s' is not the name of a test", ref)
  elseif not text_of(file) then
    report(line, "no such file: %s", file)
  elseif not defines(file, name) then
    report(line, "no test '%s' in %s", name, file)
  end
end

local function each_quoted(cell, fn)
  local n = 0
  for ref in cell:gmatch("`([^`]+)`") do
    n = n + 1
    fn(ref)
  end
  return n
end

local function check_row(line, id, state, where, test)
  if not STATES[state] then report(line, "%s: unknown state '%s'", id, state) end
  local places = each_quoted(where, function(place)
    if not exists(place) then report(line, "%s: no such path: %s", id, place) end
  end)
  local tests = each_quoted(test, function(ref) check_test(line, ref) end)
  if state == "done" and (places == 0 or tests == 0) then
    report(line, "%s is done but names no %s", id, places == 0 and "place" or "test")
  end
end

local number = 0
for text in assert(io.lines(path)) do
  number = number + 1
  local cells = {}
  for cell in text:gmatch("|%s*([^|]-)%s*%f[|]") do cells[#cells + 1] = cell end
  if #cells >= 4 and cells[1] ~= "id" and not cells[1]:match("^[-:]+$") then
    rows = rows + 1
    check_row(number, cells[1], cells[2], cells[3], cells[4])
  end
end

if rows == 0 then report(number, "no feature row found") end
os.exit(faults == 0 and 0 or 1)
