---@meta
error("lua/meta describes the API for editors: it is not for require")

---@class moontide.timer
local timer = {}

--- Let this delivery wait; others go on.
---@param duration moontide.Duration
function timer.sleep(duration) end

return timer
