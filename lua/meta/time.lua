---@meta
error("lua/meta describes the API for editors: it is not for require")

---@class moontide.time
local time = {}

---@class moontide.time.Fields
---@field year integer
---@field month integer
---@field day integer
---@field hour integer
---@field min integer
---@field sec integer
---@field wday integer 1 is Monday, 7 Sunday

--- Seconds since 1970, with a fraction.
---@return number
function time.unix() end

--- µs since 1970 of an RFC 3339 time.
---@param text string
---@return integer|nil us, moontide.Error? err
function time.parse(text) end

--- RFC 3339, in UTC or in a zone such as "Europe/Berlin".
---@param us integer
---@param zone? string
---@return string|nil text, moontide.Error? err
function time.format(us, zone) end

--- The wall clock of a zone.
---@param us integer
---@param zone string
---@return moontide.time.Fields|nil fields, moontide.Error? err
function time.in_zone(us, zone) end

return time
