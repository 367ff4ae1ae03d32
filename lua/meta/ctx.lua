---@meta
error("lua/meta describes the API for editors: it is not for require")

--- What the host gives a handler beside the event.
---@class moontide.Context
---@field config table<string, any> the handler's config with the file's overrides
---@field handler string its name
---@field version string first 12 hex digits of its content hash
---@field attempt integer 1 for the first
---@field mode "live"|"dry-run"
---@field log moontide.log
---@field tx moontide.db.Tx only with `transaction = true`
local ctx = {}

--- The event is done; the same as returning nothing.
---@return moontide.Verdict
function ctx.ack() end

--- Try again, after the backoff of `retry` or after `after`.
---@param reason string|moontide.Error
---@param after? moontide.Duration
---@return moontide.Verdict
function ctx.retry(reason, after) end

--- Give the event up: it becomes a dead letter.
---@param reason string|moontide.Error
---@return moontide.Verdict
function ctx.dead(reason) end

--- The event does not concern this handler; recorded with its reason.
---@param reason string
---@return moontide.Verdict
function ctx.skip(reason) end

--- Later, without counting an attempt; 7 days at most.
---@param after moontide.Duration
---@param reason? string
---@return moontide.Verdict
function ctx.snooze(after, reason) end

--- Seconds since 1970, with a fraction.
---@return number
function ctx.now() end

--- "event id:handler:name", the same over all attempts. Without a name: the
--- next call's number. In a batch of several the event has to be named.
---@param name? string
---@param event? moontide.Event
---@return string
function ctx.idempotency_key(name, event) end

return ctx
