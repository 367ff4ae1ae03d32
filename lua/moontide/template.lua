--- moontide.template: Handlebars templates.
--
-- A template is read once, while the handler loads: cut into tokens, parsed
-- into nodes, and every node becomes a closure. Rendering only runs closures,
-- in time linear in what is read and written. Errors name file and line.
--
-- Understood: {{x}} {{{x}}} {{&x}} {{! }} {{!-- --}}, paths with ../ this
-- @root @index @key @first @last and [literal segments], blocks with else
-- chains and block parameters, partials with context and hash, helpers with
-- arguments, hash and subexpressions, ~ and lines that hold only a tag.

local host = ...

local syntax = host.require "template_syntax"
local fail, parse_tag = syntax.fail, syntax.parse_tag

local M = {}

local helpers, partials, loaded = {}, {}, {}

local MAX_DEPTH = 100

-- Not a method call: strings of a handler's VM have the sandbox's methods.
local gsub = string.gsub


-- Values ------------------------------------------------------------------

local SAFE = { __tostring = function(s) return s.text end }

--- Text that is HTML already and is not escaped again.
---@param text string
---@return moontide.template.Safe
function M.safe(text)
  return setmetatable({ text = tostring(text) }, SAFE)
end


local ESCAPES = {
  ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;",
  ["'"] = "&#x27;", ["`"] = "&#x60;", ["="] = "&#x3D;",
}


local function is_list(value)
  return type(value) == "table" and value[1] ~= nil
end


local function is_null(value)
  return value == nil or value == host.null
end


-- Every digit that is needed and none that is not.
local function number_text(value)
  if value == math.floor(value) and math.abs(value) < 1e21 then
    return ("%.0f"):format(value + 0) -- minus zero is zero
  end
  for digits = 15, 16 do
    local text = ("%." .. digits .. "g"):format(value)
    if tonumber(text) == value then return text end
  end
  return ("%.17g"):format(value)
end


-- As JavaScript would print it, for that is what templates expect.
local function to_text(value)
  local kind = type(value)
  if kind == "string" then return value end
  if is_null(value) then return "" end
  if kind == "number" then return number_text(value) end
  if kind == "cdata" then return (tostring(value):gsub("U?LL$", "")) end
  if getmetatable(value) == SAFE then return value.text end
  if is_list(value) then
    local parts = {}
    for i = 1, #value do parts[i] = to_text(value[i]) end
    return table.concat(parts, ",")
  end
  if kind == "table" then return "[object Object]" end
  return tostring(value)
end


local function escape(value)
  if getmetatable(value) == SAFE then return value.text end
  return (gsub(to_text(value), "[&<>\"'`=]", ESCAPES))
end


-- What `if` calls false: also zero, the empty text and the empty table, which
-- may be an empty list.
local function is_empty(value)
  if is_null(value) or value == false or value == "" or value == 0 then return true end
  if type(value) == "number" then return value ~= value end
  if type(value) ~= "table" or getmetatable(value) == SAFE then return false end
  return next(value) == nil
end


-- Scopes ------------------------------------------------------------------

-- A context that is the one around it is no level of its own, so that ../ in
-- an `if` leads out of the loop the `if` is in.
local function enter(scope, this, data, locals)
  local same = rawequal(this, scope.this)
  return {
    this = this,
    up = same and scope.up or scope,
    data = data or scope.data,
    locals = locals or scope.locals,
    depth = scope.depth,
  }
end


local function frame(scope, fields)
  return setmetatable(fields, { __index = scope.data, __metatable = scope.data })
end


local function field(value, part)
  if type(value) ~= "table" then return nil end
  local n = tonumber(part)
  if n and is_list(value) then return value[n + 1] end
  if part == "length" and is_list(value) then return #value end
  local found = value[part]
  if found == host.null then return nil end
  return found
end


local function compile_data_path(node)
  local first = node.parts[1]
  return function(scope)
    local data = scope.data
    for _ = 1, node.up do data = getmetatable(data) and getmetatable(data) or {} end
    local value = data[first]
    for i = 2, #node.parts do value = field(value, node.parts[i]) end
    return value
  end
end


local function find_local(scope, name)
  local locals = scope.locals
  while locals do
    if locals.names[name] then return true, locals.values[name] end
    locals = locals.outer
  end
end


local function compile_path(node)
  if node.data then return compile_data_path(node) end
  local parts, first = node.parts, node.parts[1]
  return function(scope)
    local from, value = 1, nil
    local known = first and not node.scoped and scope.locals
    if known then known, value = find_local(scope, first) end
    if known then
      from = 2
    else
      local at = scope
      for _ = 1, node.up do at = at and at.up end
      value = at and at.this
    end
    for i = from, #parts do value = field(value, parts[i]) end
    return value
  end
end


-- Calls -------------------------------------------------------------------

local compile_expr


local function compile_args(call)
  local params, hash = {}, {}
  for i, p in ipairs(call.params) do params[i] = compile_expr(p) end
  for _, k in ipairs(call.keys) do hash[k] = compile_expr(call.hash[k]) end
  return function(scope)
    local values, named = {}, {}
    for i = 1, #params do values[i] = params[i](scope) end
    for k, f in pairs(hash) do named[k] = f(scope) end
    return values, named, #params
  end
end


local function helper_name(call)
  local target = call.target
  if target.kind == "literal" then return to_text(target.value) end
  if target.kind ~= "path" or target.data or target.scoped or #target.parts ~= 1 then return nil end
  return target.parts[1]
end


local function run_helper(call, helper, scope, args, options)
  local values, named, n = args(scope)
  options.hash, options.data, options.this = named, scope.data, scope.this
  options.name = helper_name(call)
  values[n + 1] = options
  local result = { pcall(helper, unpack(values, 1, n + 1)) }
  if result[1] then return result[2] end
  if type(result[2]) ~= "string" or result[2]:find("^[^\n:]+:%d+: ") then error(result[2], 0) end
  fail(call, "helper %s: %s", options.name, result[2])
end


-- `{{name}}` is a helper if there is one, else a path; with arguments it has
-- to be a helper.
local function compile_call(call)
  local name = helper_name(call)
  local args = compile_args(call)
  local path = call.target.kind ~= "call" and compile_expr(call.target)
  local bare = #call.params == 0 and #call.keys == 0
  return function(scope)
    local helper = name and helpers[name]
    if helper and not (bare and scope.locals and find_local(scope, name)) then
      return run_helper(call, helper, scope, args, {})
    end
    if not bare then fail(call, "there is no helper %s", name or "here") end
    return path and path(scope)
  end
end


function compile_expr(node)
  if node.kind == "literal" then
    local value = node.value
    return function() return value end
  end
  if node.kind == "path" then return compile_path(node) end
  return compile_call(node)
end


-- Nodes: function(out, scope), `out` a list of texts ------------------------

local compile_nodes


local function render_part(nodes, scope)
  local out = { n = 0 }
  nodes(out, scope)
  return table.concat(out, "", 1, out.n)
end


local function emit(out, text)
  local n = out.n + 1
  out.n, out[n] = n, text
end


local function compile_value(call, raw)
  local value = compile_call(call)
  if raw then return function(out, scope) emit(out, to_text(value(scope))) end end
  return function(out, scope) emit(out, escape(value(scope))) end
end


local function locals_of(scope, names, ...)
  if not names or #names == 0 then return nil end
  local known, values = {}, {}
  for i, name in ipairs(names) do known[name], values[name] = true, (select(i, ...)) end
  return { names = known, values = values, outer = scope.locals }
end


local function each_item(out, scope, node, value, fields)
  local inner = enter(scope, value, frame(scope, fields),
    locals_of(scope, node.call.block_params, value, fields.key))
  -- An item equal to its surroundings is still a level of its own.
  inner.up = scope
  node.body(out, inner)
end


local function each_list(out, scope, node, list)
  local n = #list
  for i = 1, n do
    each_item(out, scope, node, list[i],
      { index = i - 1, key = i - 1, first = i == 1, last = i == n })
  end
end


local function each_object(out, scope, node, object)
  local keys, values, n = {}, {}, 0
  for key, value in host.pairs(object) do
    n = n + 1
    keys[n], values[n] = key, value
  end
  for i = 1, n do
    each_item(out, scope, node, values[i],
      { index = i - 1, key = keys[i], first = i == 1, last = i == n })
  end
  return n
end


-- Blocks that the language itself knows; `values` are their arguments.
local blocks = {}


function blocks.each(out, scope, node, values)
  local value = values[1]
  if is_list(value) then
    each_list(out, scope, node, value)
  elseif type(value) ~= "table" or is_null(value) or each_object(out, scope, node, value) == 0 then
    node.otherwise(out, scope)
  end
end


blocks["if"] = function(out, scope, node, values, named)
  local value = values[1]
  local yes = not is_empty(value) or value == 0 and named.includeZero
  if yes then node.body(out, scope) else node.otherwise(out, scope) end
end


function blocks.unless(out, scope, node, values)
  if is_empty(values[1]) then node.body(out, scope) else node.otherwise(out, scope) end
end


blocks["with"] = function(out, scope, node, values)
  local value = values[1]
  if is_empty(value) then
    node.otherwise(out, scope)
  else
    node.body(out, enter(scope, value, nil, locals_of(scope, node.call.block_params, value)))
  end
end


-- {{#name}} of a value: a list is walked, an object entered, the rest decides.
local function section(out, scope, node, value)
  if is_list(value) then
    each_list(out, scope, node, value)
  elseif is_null(value) or value == false or is_empty(value) and type(value) == "table" then
    node.otherwise(out, scope)
  elseif value == true then
    node.body(out, scope)
  else
    node.body(out, enter(scope, value))
  end
end


local function user_block(out, scope, node, helper, args)
  local options = {
    fn = function(this, data)
      return render_part(node.body,
        enter(scope, this == nil and scope.this or this, data and frame(scope, data)))
    end,
    inverse = function(this)
      return render_part(node.otherwise, enter(scope, this == nil and scope.this or this))
    end,
  }
  emit(out, to_text(run_helper(node.call, helper, scope, args, options)))
end


local function compile_block(node)
  local call = node.call
  local name, args = helper_name(call), compile_args(call)
  local known = name and blocks[name]
  local bare = #call.params == 0 and #call.keys == 0
  local value = compile_expr(call.target)
  if known and #call.params ~= 1 then fail(call, "%s takes one argument", name) end
  return function(out, scope)
    local helper = name and helpers[name]
    if helper then
      user_block(out, scope, node, helper, args)
    elseif known then
      known(out, scope, node, args(scope))
    elseif bare then
      section(out, scope, node, value(scope))
    else
      fail(call, "there is no block helper %s", name or "here")
    end
  end
end


-- Partials ----------------------------------------------------------------

local load_template


local function find_partial(call, name)
  local path = partials[name] or name .. ".hbs"
  local ok, found = pcall(load_template, path)
  if not ok then fail(call, "partial %s: %s", name, tostring(found)) end
  return found
end


local function indented(text, indent)
  if indent == "" then return text end
  local body = text:gsub("\n([^\n])", "\n" .. indent:gsub("%%", "%%%%") .. "%1")
  return body == "" and "" or indent .. body
end


local function partial_context(scope, values, named)
  local this = values[1]
  if this == nil then this = scope.this end
  if next(named) == nil then return this end
  local merged = named
  return setmetatable(merged, { __index = function(_, k) return field(this, k) end })
end


local function compile_partial(token)
  local call = parse_tag(token)
  local args = compile_args(call)
  local target = call.target
  local fixed = target.kind == "path" and target.name
    or target.kind == "literal" and to_text(target.value)
  local dynamic = not fixed and compile_expr(target)
  if fixed then find_partial(call, fixed) end
  return function(out, scope)
    local partial = find_partial(call, fixed or to_text(dynamic(scope)))
    if scope.depth >= MAX_DEPTH then fail(call, "partials are nested too deep") end
    local values, named = args(scope)
    local this = partial_context(scope, values, named)
    local inner = { this = this, data = scope.data, depth = scope.depth + 1 }
    inner.up = scope
    if token.indent then
      emit(out, indented(render_part(partial.nodes, inner), token.indent))
    else
      partial.nodes(out, inner)
    end
  end
end


-- Parsing -----------------------------------------------------------------

local parse_nodes


local function nothing() end


local function expect_close(reader, token, name)
  local close = reader.tokens[reader.at]
  if not close then fail(token, "{{#%s}} has no {{/%s}}", name, name) end
  local closed = close.text:match("^%s*(.-)%s*$")
  if close.kind ~= "close" or closed ~= name then
    fail(close, "{{/%s}} does not close {{#%s}} of line %d", closed, name, token.line)
  end
  reader.at = reader.at + 1
end


-- After `else`: either another block of the chain, or the rest.
local function parse_otherwise(reader, token, name)
  local tag = reader.tokens[reader.at]
  if not tag or tag.kind ~= "else" then
    expect_close(reader, token, name)
    return nothing
  end
  reader.at = reader.at + 1
  if not tag.text:find("%S") then
    local rest = parse_nodes(reader)
    expect_close(reader, token, name)
    return rest
  end
  local node = { call = parse_tag(tag), body = parse_nodes(reader) }
  node.otherwise = parse_otherwise(reader, token, name)
  return compile_block(node)
end


local function parse_block(reader, token)
  local node = { call = parse_tag(token) }
  local target = node.call.target
  local name = target.kind == "literal" and to_text(target.value) or target.name
  node.body = parse_nodes(reader)
  node.otherwise = parse_otherwise(reader, token, name)
  if token.kind == "inverse" then node.body, node.otherwise = node.otherwise, node.body end
  return compile_block(node)
end


local function parse_node(reader, token)
  if token.kind == "text" then
    local text = token.text
    return function(out) emit(out, text) end
  end
  if token.kind == "comment" then return nothing end
  if token.kind == "partial" then return compile_partial(token) end
  if token.kind == "block" or token.kind == "inverse" then return parse_block(reader, token) end
  return compile_value(parse_tag(token), token.kind == "raw")
end


-- Everything up to a close or else, which is left to the caller.
function parse_nodes(reader)
  local nodes = {}
  while true do
    local token = reader.tokens[reader.at]
    if not token or token.kind == "close" or token.kind == "else" then break end
    reader.at = reader.at + 1
    nodes[#nodes + 1] = parse_node(reader, token)
  end
  return compile_nodes(nodes)
end


function compile_nodes(nodes)
  return function(out, scope)
    for i = 1, #nodes do nodes[i](out, scope) end
  end
end


local Template = {}
Template.__index = Template
Template.__metatable = "template"


-- Registered before it is parsed, so that a partial may use itself.
function load_template(path)
  if loaded[path] then return loaded[path] end
  local template = setmetatable({ path = path }, Template)
  loaded[path] = template
  local ok, err = pcall(function()
    local reader = { tokens = syntax.read(path, host.template_source(path)), at = 1 }
    template.nodes = parse_nodes(reader)
    local rest = reader.tokens[reader.at]
    if rest then
      fail(rest, "{{%s}} closes nothing", rest.kind == "else" and "else" or "/" .. rest.text)
    end
  end)
  if not ok then
    loaded[path] = nil
    error(err, 0)
  end
  return template
end


-- Public ------------------------------------------------------------------

--- Fill the template in.
---@param data any
---@return string
function Template:render(data)
  local out = { n = 0 }
  self.nodes(out, { this = data, data = { root = data }, depth = 0 })
  return table.concat(out, "", 1, out.n)
end


--- A template of templates.path, read while the handler loads.
---@param path string
---@return moontide.template.Template
function M.load(path)
  if type(path) ~= "string" then error("template.load takes a path", 2) end
  local ok, result = pcall(load_template, path)
  if ok then return result end
  local is_placed = type(result) ~= "string" or result:find("^[^\n:]+:%d+: ")
  error(result, is_placed and 0 or 2)
end


--- A helper: {{name a b key=value}} calls fn(a, b, options), a block calls it
--- with options.fn and options.inverse. Text it returns is escaped like any
--- value; template.safe() keeps it.
---@param name string
---@param fn function
function M.helper(name, fn)
  if type(name) ~= "string" or type(fn) ~= "function" then
    error("template.helper takes a name and a function", 2)
  end
  helpers[name] = fn
end


--- Give a partial a name other than its file's.
---@param name string
---@param path string
function M.partial(name, path)
  if type(name) ~= "string" or type(path) ~= "string" then
    error("template.partial takes a name and a path", 2)
  end
  partials[name] = path
  M.load(path)
end


helpers.lookup = function(value, key)
  return field(value, to_text(key))
end


return M
