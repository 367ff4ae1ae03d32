---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Running a handler in its spec: effects are remembered and answered, nothing
--- outside is touched.
---@class moontide.testing
local testing = {}

---@class moontide.testing.Options
---@field config? table<string, any>
---@field now? number seconds since 1970

---@class moontide.testing.Handler
local Handler = {}

--- What the next calls of an effect get, such as "http.post" or "db.query".
---@param effect string
---@param result any
---@param err? moontide.Error|table
function Handler:answer(effect, result, err) end

--- Run one event, or a list of events as one batch.
---@param event moontide.Event|moontide.Event[]
---@return moontide.testing.Run
function Handler:run(event) end

---@class moontide.testing.Run
---@field verdict "ack"|"retry"|"dead"|"skip"|"snooze"
---@field reason? string
---@field verdicts { verdict: string, reason?: string }[] of a batch, by event
---@field effects moontide.testing.Effects

---@class moontide.testing.Effect
---@field class string
---@field name string
---@field args any

---@class moontide.testing.Effects
local Effects = {}

---@param name string
---@return moontide.testing.Effect[]
function Effects:of(name) end

--- A handler of the folder handlers.path by its name.
---@param name string
---@param options? moontide.testing.Options
---@return moontide.testing.Handler
function testing.handler(name, options) end

--- An event with believable defaults; `fields` overrides them.
---@param event_type string
---@param fields? table
---@return moontide.Event
function testing.event(event_type, fields) end

return testing
