---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Metrics of /metrics, made while the handler loads; names get the prefix
--- `handler_`, and series are bounded.
---@class moontide.metric
local metric = {}

---@class moontide.metric.Options
---@field help? string
---@field labels? string[]

---@class moontide.metric.Counter
local Counter = {}

---@param n? number default 1
---@param labels? table<string, string>
function Counter:inc(n, labels) end

---@class moontide.metric.Gauge
local Gauge = {}

---@param value number
---@param labels? table<string, string>
function Gauge:set(value, labels) end

---@class moontide.metric.Histogram
local Histogram = {}

---@param value number
---@param labels? table<string, string>
function Histogram:observe(value, labels) end

---@param name string
---@param options? moontide.metric.Options
---@return moontide.metric.Counter
function metric.counter(name, options) end

---@param name string
---@param options? moontide.metric.Options
---@return moontide.metric.Gauge
function metric.gauge(name, options) end

---@param name string
---@param options? moontide.metric.Options
---@return moontide.metric.Histogram
function metric.histogram(name, options) end

return metric
