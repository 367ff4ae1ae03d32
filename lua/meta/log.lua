---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Lines of the host's log, with the handler's name and the event's id.
---@class moontide.log
local log = {}

---@param message string a constant phrase
---@param fields? table<string, any> what changes
function log.debug(message, fields) end

---@param message string
---@param fields? table<string, any>
function log.info(message, fields) end

---@param message string
---@param fields? table<string, any>
function log.warn(message, fields) end

---@param message string
---@param fields? table<string, any>
function log.error(message, fields) end

return log
