---@meta
error("lua/meta describes the API for editors: it is not for require")

--- An immutable fact. Fields are read when they are touched.
---@class moontide.Event
---@field id string
---@field type string
---@field version integer|string schema version of the type; text when it is no whole number
---@field aggregate_type string
---@field aggregate_id string
---@field aggregate_version? integer|string
---@field occurred_at string RFC 3339, µs
---@field occurred_at_us integer µs since 1970
---@field payload any
---@field metadata moontide.Metadata empty when there is none, or none that is a JSON object
---@field source moontide.Source
---@field attempt integer 1 for the first
---@field raw string the payload's bytes as they came, not decoded; of a body that is no JSON, all of it

---@class moontide.Metadata
---@field actorId? string
---@field correlationId? string
---@field causationId? string
---@field sourceModule? string
---@field traceparent? string
---@field relatesTo? { type: string, id: string }[]
---@field hops? integer

---@class moontide.Source
---@field kind "kafka"|"outbox"|"redrive"
---@field topic? string
---@field partition? integer
---@field offset? integer
---@field table? string
---@field seq? integer
