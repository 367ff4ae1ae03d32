---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Mail through the SMTP server of the setting mail.url. Needs
--- `allow = { mail = true }`. At least once; the Message-ID stays the same.
---@class moontide.mail
local mail = {}

---@class moontide.mail.Message
---@field to string|string[] "ann@example.com" or "Ann <ann@example.com>"
---@field from? string default: the setting mail.from
---@field cc? string|string[]
---@field bcc? string|string[]
---@field reply_to? string
---@field subject string
---@field text? string
---@field html? string
---@field headers? table<string, string> others than those that mail.send writes
---@field attachments? { name: string, data: string, type?: string }[]
---@field idempotency_key? string

---@param message moontide.mail.Message
---@return true|nil, moontide.Error?
function mail.send(message) end

return mail
