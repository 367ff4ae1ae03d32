--- moontide.mail: messages through the SMTP server of the setting mail.url.
--
-- Sending is at least once: the Message-ID comes from the idempotency key, so
-- that a server which keeps an eye on it delivers a retried message once.

local host = ...

local prim = host.mail
local crypto = host.require "crypto"
local uuid = host.require "uuid"

local M = {}

local FIELDS = { to = true, from = true, cc = true, bcc = true, reply_to = true, subject = true,
                 text = true, html = true, headers = true, attachments = true,
                 idempotency_key = true }

-- Namespace of the message ids made from idempotency keys.
local MESSAGE_IDS = "5b1d8a5e-5a0e-5b0c-9a55-6f1f0a6c2f4e"


local function bad(message, ...)
  return nil, host.err("permanent", "bad_message", message:format(...))
end


-- Headers that come from the other fields, or from the parts of the message.
local OWN = { from = true, to = true, cc = true, bcc = true, subject = true, date = true,
              ["message-id"] = true, ["mime-version"] = true }


-- RFC 2047: a word to a line of at most 76 columns, cut between characters; what
-- is no UTF-8 is cut anywhere. `used` columns of the first line are taken.
local function encode_words(text, used)
  local words, from = {}, 1
  local room = math.max(6, math.floor((64 - used) / 4) * 3)
  while from <= #text do
    local to = math.min(from + room - 1, #text)
    local last = to
    while to > from and to < #text and text:find("^[\128-\191]", to + 1) do to = to - 1 end
    if to == from then to = last end
    words[#words + 1] = "=?UTF-8?B?" .. crypto.base64(text:sub(from, to)) .. "?="
    from, room = to + 1, 45
  end
  return table.concat(words, "\r\n ")
end


-- RFC 5322: lines of at most 78 columns, broken before a blank, none of them
-- blank as a whole.
local function fold(text, used)
  local lines, last = {}, #text
  while last > 0 and text:find("^%s", last) do last = last - 1 end
  text = text:sub(1, last)
  while used + #text > 78 do
    local line = text:sub(1, 79 - used):match("^(%s*%S.*)%s") or text:match("^(%s*%S+)%s")
    if not line then break end
    lines[#lines + 1] = line
    text, used = text:sub(#line + 1), 0
  end
  lines[#lines + 1] = text
  return table.concat(lines, "\r\n")
end


local LONG_WORD = ("%S"):rep(70)


-- A text that people read as a header's value. What no blank can break is
-- encoded, or a server with a limit for lines refuses the message.
local function header_text(name, text)
  local used = #name + 2
  if text:find("[\128-\255]") or text:find(LONG_WORD) then return encode_words(text, used) end
  return fold(text, used)
end


-- "Ann <ann@example.com>" or "ann@example.com" → address, header's text
local function parse_address(text)
  if type(text) ~= "string" or text:find("[%c]") then return nil end
  local name, address = text:match("^%s*(.-)%s*<([^<>%s]+@[^<>%s]+)>%s*$")
  if not address then
    address = text:match("^%s*([^<>%s,;]+@[^<>%s,;]+)%s*$")
    return address, address
  end
  if name == "" then return address, address end
  name = name:match('^"(.*)"$') or name
  if name:find("[\128-\255]") then
    name = encode_words(name, 10)
  else
    name = '"' .. name:gsub('[\\"]', "\\%0") .. '"'
  end
  return address, ("%s <%s>"):format(name, address)
end


-- A text or a list of texts; adds to `recipients`, returns the header's value.
local function add_recipients(recipients, list)
  if list == nil then return nil end
  if type(list) == "string" then list = { list } end
  local shown = {}
  for i = 1, #list do
    local address, text = parse_address(list[i])
    if not address then return nil, tostring(list[i]) end
    recipients[#recipients + 1] = "<" .. address .. ">"
    shown[i] = text
  end
  return table.concat(shown, ",\r\n ")
end


local function add_header(lines, name, value)
  if value then lines[#lines + 1] = name .. ": " .. value end
end


local function custom_headers(lines, headers)
  for name, value in pairs(headers or {}) do
    name, value = tostring(name), tostring(value)
    local lower = name:lower()
    if OWN[lower] or lower:find("^content%-") or not name:find("^[%w%-]+$")
      or value:find("[\r\n%z]") then
      return name
    end
    add_header(lines, name, header_text(name, value))
  end
end


-- Everything that goes to the server, or nil and an error.
local function build(message, from, key)
  local lines, recipients = {}, {}
  local sender, sender_text = parse_address(from)
  if not sender then return bad("from is no mail address: %s", tostring(from)) end
  for _, field in ipairs { "to", "cc", "bcc" } do
    local shown, wrong = add_recipients(recipients, message[field])
    if wrong then return bad("%s is no mail address: %s", field, wrong) end
    if field ~= "bcc" then add_header(lines, field == "to" and "To" or "Cc", shown) end
  end
  if #recipients == 0 then return bad("the message has no recipient") end
  if message.reply_to then
    local address, text = parse_address(message.reply_to)
    if not address then return bad("reply_to is no mail address") end
    add_header(lines, "Reply-To", text)
  end
  if message.subject:find("[\r\n%z]") then return bad("the subject has a line break") end
  local wrong = custom_headers(lines, message.headers)
  if wrong then
    return bad("the header %s cannot be given: mail.send writes it, or it is malformed", wrong)
  end
  add_header(lines, "From", sender_text)
  add_header(lines, "Subject", header_text("Subject", message.subject))
  add_header(lines, "Date", os.date("!%a, %d %b %Y %H:%M:%S +0000"))
  add_header(lines, "Message-ID",
    ("<%s@%s>"):format(uuid.v5(MESSAGE_IDS, key), sender:match("@(.+)$")))
  return { sender = "<" .. sender .. ">", recipients = recipients, lines = lines }
end


-- Lines of mail end in CR LF.
local function lines_of(text)
  return text and (string.gsub(text, "\r?\n", "\r\n"))
end


-- { name, type, data } of each, or nil and an error.
local function read_attachments(list)
  local out = {}
  for i, a in ipairs(list or {}) do
    local kind = type(a) == "table" and (a.type or "application/octet-stream")
    if type(kind) ~= "string" or type(a.name) ~= "string" or type(a.data) ~= "string" then
      error("an attachment is { name = , data = , type = }", 3)
    end
    if (a.name .. kind):find("%c") then
      return bad("the name or the type of attachment %d has a line break", i)
    end
    out[i] = { a.name, kind, a.data }
  end
  return out
end


local function check(message)
  if type(message) ~= "table" then error("mail.send takes a table", 3) end
  for key in pairs(message) do
    if not FIELDS[key] then error(("unknown field %s of a mail"):format(tostring(key)), 3) end
  end
  if type(message.subject) ~= "string" then error("mail.send needs a subject", 3) end
  if type(message.text or message.html) ~= "string" then
    error("mail.send needs text or html", 3)
  end
  if not host.allow.mail then error("mail.send needs allow = { mail = true }", 3) end
end


--- Send one message. True when the server has taken it.
---@param message moontide.mail.Message
---@return true|nil, moontide.Error?
function M.send(message)
  host.check("mail.send")
  check(message)
  local key = message.idempotency_key or host.idempotency_key()
  local answered, result, err = host.effect("mail", "mail.send", message)
  if answered then
    if err ~= nil then return nil, err end
    return result == nil or result
  end
  local built, attachments
  built, err = build(message, message.from or host.setting("mail.from") or "", key)
  if built then attachments, err = read_attachments(message.attachments) end
  if not attachments then
    host.effect_done("mail", false)
    return nil, err
  end
  result, err = prim.send(built.sender, built.recipients, built.lines, lines_of(message.text),
    lines_of(message.html), attachments)
  host.effect_done("mail", err == nil)
  return result, err
end


return M
