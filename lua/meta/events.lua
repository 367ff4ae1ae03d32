---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Publishing events, and reading published ones.
---@class moontide.events
local events = {}

---@class moontide.events.NewEvent
---@field type string
---@field aggregate_type string
---@field aggregate_id string
---@field payload any
---@field version? integer default 1
---@field metadata? table correlationId, causationId and traceparent are filled in
---@field expected_version? integer of the aggregate; else err.code is "MT001"
---@field occurred_at? string RFC 3339; default: now
---@field idempotency_key? string what the id is made from

--- Inside ctx.tx the event is stored with it or not at all.
---@param event moontide.events.NewEvent
---@return string|nil id, moontide.Error? err
function events.publish(event) end

--- All events of an aggregate, in the order of the store. Raises when the store fails.
---@param aggregate_type string
---@param id string
---@return fun(): moontide.Event?
function events.by_aggregate(aggregate_type, id) end

--- All events of a type since a time, in the order of occurred_at.
---@param event_type string
---@param since? string RFC 3339
---@return fun(): moontide.Event?
function events.by_type(event_type, since) end

return events
