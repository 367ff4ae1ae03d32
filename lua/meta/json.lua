---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Lossless JSON: 64-bit integers, null, empty arrays and the order of keys
--- survive; what nobody changed is written byte for byte as it came.
---@class moontide.json
---@field null lightuserdata a null to write
local json = {}

---@param value any
---@return string
function json.encode(value) end

---@param text string
---@return any|nil value, moontide.Error? err
function json.decode(text) end

--- Is t[k] a null? It reads as nil.
---@param t table
---@param k string|integer
---@return boolean
function json.is_null(t, k) end

--- A table that is written as an array, also when it is empty.
---@generic T
---@param t T[]
---@return T[]
function json.array(t) end

--- The exact text of the number t[k].
---@param t table
---@param k string|integer
---@return string?
function json.text(t, k) end

--- JSON text that is written as it is.
---@param text string
---@return any
function json.raw(text) end

return json
