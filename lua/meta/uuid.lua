---@meta
error("lua/meta describes the API for editors: it is not for require")

---@class moontide.uuid
local uuid = {}

--- Random.
---@return string
function uuid.v4() end

--- The same for the same namespace and name.
---@param namespace string a UUID
---@param name string
---@return string
function uuid.v5(namespace, name) end

--- Ordered by time.
---@return string
function uuid.v7() end

return uuid
