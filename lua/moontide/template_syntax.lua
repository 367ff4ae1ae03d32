--- The syntax of Handlebars: a template's text as a list of tokens, and what
--- stands in a tag as an expression.
--
-- A token is { kind, text, file, line }: kind is text, value, raw, block,
-- inverse, close, else, partial or comment. An expression is a literal, a path
-- or a call; its nodes are plain tables, compiled by template.lua.

local M = {}


-- Tokens ------------------------------------------------------------------

local function fail(where, message, ...)
  error(("%s:%d: %s"):format(where.file, where.line, message:format(...)), 0)
end


local function count_lines(text, from, to)
  local n, at = 0, from
  while true do
    at = text:find("\n", at, true)
    if not at or at > to then return n end
    n, at = n + 1, at + 1
  end
end


-- How many backslashes stand right before `at`.
local function backslashes(text, at)
  local n = 0
  while text:byte(at - n - 1) == 92 do n = n + 1 end
  return n
end


-- The end of the tag that starts at `from`, its inner text and its kind.
local function read_tag(where, source, from)
  if source:sub(from, from + 3) == "{{{{" then fail(where, "raw blocks are not supported") end
  local open = source:sub(from, from + 2) == "{{{" and "{{{" or "{{"
  local body_from = from + #open
  local head = source:match("^~?()", body_from)
  if source:sub(head, head + 2) == "!--" then
    local stop = source:find("--", head + 3, true)
    while stop and not source:find("^~?}}", stop + 2) do
      stop = source:find("--", stop + 1, true)
    end
    if not stop then fail(where, "the comment has no end") end
    local _, last = source:find("^~?}}", stop + 2)
    return last, source:sub(body_from, last - 2), open
  end
  local close = open == "{{{" and "}}}" or "}}"
  local stop = source:find(close, body_from, true)
  if not stop then fail(where, "the tag has no end") end
  return stop + #close - 1, source:sub(body_from, stop - 1), open
end


local KINDS = { ["#"] = "block", ["^"] = "inverse", ["/"] = "close", [">"] = "partial",
                ["!"] = "comment", ["&"] = "raw" }


local function make_tag(where, open, inner)
  local token = { file = where.file, line = where.line }
  if inner:sub(1, 1) == "~" then token.trim_before, inner = true, inner:sub(2) end
  if inner:sub(-1) == "~" then token.trim_after, inner = true, inner:sub(1, -2) end
  local sigil = inner:sub(1, 1)
  token.kind = open == "{{{" and "raw" or KINDS[sigil] or "value"
  if open ~= "{{{" and KINDS[sigil] then inner = inner:sub(2) end
  token.text = inner
  local word, rest = inner:match("^%s*(%S+)()")
  if token.kind == "value" and word == "else" then
    token.kind, token.text = "else", inner:sub(rest)
  elseif token.kind == "inverse" and not word then
    token.kind = "else"
  elseif token.kind == "block" and (sigil == "#" and (word == ">" or inner:find("^[>*]"))) then
    fail(token, "partial blocks and inline partials are not supported")
  end
  return token
end


local function tokenize(file, source)
  local tokens, at, line = {}, 1, 1
  local literal = {}

  local function flush()
    if #literal > 0 then
      tokens[#tokens + 1] = { kind = "text", text = table.concat(literal) }
      literal = {}
    end
  end

  while true do
    local from = source:find("{{", at, true)
    if not from then break end
    local slashes = backslashes(source, from)
    if slashes == 1 then -- \{{ stands for itself, up to the next tag
      local stop = source:find("{{", from + 2, true) or #source + 1
      if source:byte(stop - 1) == 92 then stop = stop - 1 end
      literal[#literal + 1] = source:sub(at, from - 2) .. source:sub(from, stop - 1)
      line = line + count_lines(source, at, stop - 1)
      at = stop
    else
      literal[#literal + 1] = source:sub(at, from - 1 - (slashes > 1 and 1 or 0))
      line = line + count_lines(source, at, from - 1)
      local where = { file = file, line = line }
      local stop, inner, open = read_tag(where, source, from)
      flush()
      tokens[#tokens + 1] = make_tag(where, open, inner)
      line = line + count_lines(source, from, stop)
      at = stop + 1
    end
  end
  literal[#literal + 1] = source:sub(at)
  flush()
  return tokens
end


-- Whitespace --------------------------------------------------------------

-- Length of the blanks at the end of `text` back to a line's start, or nil.
local function blank_tail(text, is_first)
  local i = #text
  while i > 0 do
    local c = text:byte(i)
    if c == 10 then return #text - i end
    if c ~= 32 and c ~= 9 then return nil end
    i = i - 1
  end
  return is_first and #text or nil
end


-- Length of the blanks at the start of `text` with the line's end, or nil.
local function blank_head(text, is_last)
  local stop = text:match("^[ \t]*\r?\n()")
  if stop then return stop - 1 end
  return is_last and text:find("^[ \t]*$") and #text or nil
end


local ALONE = { block = true, inverse = true, close = true, ["else"] = true,
                comment = true, partial = true }


-- A line that holds nothing but a tag without output is not part of the text.
local function mark_standalone(tokens, i)
  local before, after = tokens[i - 1], tokens[i + 1]
  if before and before.kind ~= "text" or after and after.kind ~= "text" then return end
  local tail = before and blank_tail(before.text, i == 2) or not before and 0
  local head = after and blank_head(after.text, i + 1 == #tokens) or not after and 0
  if not tail or not head then return end
  if before then
    before.cut_tail = tail
    if tokens[i].kind == "partial" then
      tokens[i].indent = before.text:sub(#before.text - tail + 1)
    end
  end
  if after then after.cut_head = head end
end


local function trim_right(text)
  local i = #text
  while i > 0 and text:find("^%s", i) do i = i - 1 end
  return text:sub(1, i)
end


local function strip(tokens)
  for i, token in ipairs(tokens) do
    if ALONE[token.kind] then mark_standalone(tokens, i) end
  end
  for i, token in ipairs(tokens) do
    if token.kind == "text" then
      local before, after = tokens[i - 1], tokens[i + 1]
      local from = 1 + (token.cut_head or 0)
      local to = #token.text - (token.cut_tail or 0)
      local text = token.text:sub(from, to)
      if before and before.trim_after then text = text:gsub("^%s+", "") end
      if after and after.trim_before then text = trim_right(text) end
      token.text = text
    end
  end
  return tokens
end


-- Expressions -------------------------------------------------------------

local parse_list


local function unquote(token, text, at)
  local quote = text:sub(at, at)
  local stop = at + 1
  while true do
    local c = text:sub(stop, stop)
    if c == "" then fail(token, "a text has no end: %s", text:sub(at)) end
    if c == quote then break end
    stop = stop + (c == "\\" and 2 or 1)
  end
  local inner = text:sub(at + 1, stop - 1):gsub("\\([\"'\\])", "%1")
  return { kind = "literal", value = inner }, stop + 1
end


local LITERALS = { ["true"] = true, ["false"] = false }


-- a.b/c, ../a, this, @index, a.[some name], a.0
local function parse_path(token, text)
  local node = { kind = "path", up = 0, parts = {}, name = text }
  local at = 1
  if text:sub(1, 1) == "@" then node.data, at = true, 2 end
  while text:sub(at, at + 1) == ".." do
    node.up, at = node.up + 1, at + 2
    if text:sub(at, at):find("[/.]") then at = at + 1 end
    node.scoped = true
  end
  if text:sub(at, at + 1) == "./" then node.scoped, at = true, at + 2 end
  if text:find("^this$", at) or text:find("^this[./]", at) then
    node.scoped, at = true, at + 4
    if at <= #text then at = at + 1 end
  elseif text:sub(at) == "." then
    node.scoped, at = true, at + 1
  end
  while at <= #text do
    local part, stop = text:match("^%[([^%]]*)%]()", at)
    if not part then part, stop = text:match("^([^%./%[%]]+)()", at) end
    if not part then fail(token, "%s is no path", text) end
    node.parts[#node.parts + 1] = part
    at = stop
    if at <= #text then
      if not text:find("^[./]", at) or at == #text then fail(token, "%s is no path", text) end
      at = at + 1
    end
  end
  return node
end


local function word_end(text, at)
  local stop = at
  while true do
    local c = text:sub(stop, stop)
    if c == "[" then
      stop = text:find("]", stop, true) or #text
    elseif c == "" or c:find("[%s()=|]") then
      return stop
    end
    stop = stop + 1
  end
end


local function parse_value(token, text, at)
  local c = text:sub(at, at)
  if c == '"' or c == "'" then return unquote(token, text, at) end
  if c == "(" then
    local call, stop = parse_list(token, text, at + 1, ")")
    return call, stop
  end
  local stop = word_end(text, at)
  local word = text:sub(at, stop - 1)
  if word == "" then fail(token, "cannot read: %s", text:sub(at)) end
  if LITERALS[word] ~= nil then return { kind = "literal", value = LITERALS[word] }, stop end
  if word == "null" or word == "undefined" then return { kind = "literal" }, stop end
  if word:find("^%-?%d+%.?%d*$") then return { kind = "literal", value = tonumber(word) }, stop end
  return parse_path(token, word), stop
end


-- name value… key=value… [as |a b|], up to `close` or the end.
function parse_list(token, text, at, close)
  local call = { kind = "call", params = {}, hash = {}, keys = {}, line = token.line,
                 file = token.file }
  while true do
    at = text:match("^%s*()", at)
    local c = text:sub(at, at)
    if c == "" and not close then break end
    if c == "" then fail(token, "a ( has no )") end
    if c == close then at = at + 1 break end
    local key, after = text:match("^([%w_@%-]+)=()", at)
    local names, stop = text:match("^as%s+|%s*([^|]-)%s*|()", at)
    if names and call.target then
      call.block_params = {}
      for name in names:gmatch("%S+") do
        call.block_params[#call.block_params + 1] = name
      end
      at = stop
    elseif key and call.target then
      call.keys[#call.keys + 1] = key
      call.hash[key], at = parse_value(token, text, after)
    else
      local value
      value, at = parse_value(token, text, at)
      if call.target then call.params[#call.params + 1] = value else call.target = value end
    end
  end
  if not call.target then fail(token, "an empty tag") end
  return call, at
end


local function parse_tag(token)
  return (parse_list(token, token.text, 1))
end


--- A template's tokens, with the whitespace that stays.
function M.read(file, source)
  return strip(tokenize(file, source))
end


M.parse_tag = parse_tag
M.fail = fail

return M
