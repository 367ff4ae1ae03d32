---@meta
error("lua/meta describes the API for editors: it is not for require")

--- What patterns do slowly, in linear time.
---@class moontide.text
local text = {}

---@param s string
---@return string
function text.trim(s) end

---@param s string
---@param separator string plain text
---@param max? integer parts at most
---@return string[]
function text.split(s, separator, max) end

--- Mail addresses, phone and card numbers become "***".
---@param s string
---@return string
function text.redact(s) end

---@param s string
---@param prefix string
---@return boolean
function text.starts_with(s, prefix) end

---@param s string
---@param suffix string
---@return boolean
function text.ends_with(s, suffix) end

return text
