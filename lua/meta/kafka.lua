---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Records to Kafka. Needs `allow = { kafka = { "topic" } }`. At least once:
--- a retried delivery writes them again; with `transaction = "kafka"` exactly once.
---@class moontide.kafka
local kafka = {}

---@class moontide.kafka.Record
---@field topic string
---@field key? string bytes; records of one key stay in order
---@field value string bytes; json.null writes a record without a value, which deletes its key in a compacted topic
---@field headers? table<string, string>

--- True when all replicas in sync have it; in a transaction at once, and they have it when it commits.
---@param record moontide.kafka.Record
---@return true|nil, moontide.Error?
function kafka.produce(record) end

return kafka
