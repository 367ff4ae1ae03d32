---@meta
error("lua/meta describes the API for editors: it is not for require")

--- What a handler file returns.
---@class moontide.Handler
---@field description? string one line, shown by `moontide handlers list`
---@field subscribes string[]|string event types: exact, "*", "order.*", "order.**", "Invoice*", "!not.this"
---@field ordering? "key"|"partition"|"none" default "key"
---@field key? string|table<string, string> path of the ordering key, or type → path; default: the aggregate id
---@field concurrency? integer lanes at once per host, default 16
---@field start? "now"|"earliest"|string where a handler without a position begins
---@field retry? moontide.Retry
---@field breaker? false|moontide.Breaker when to leave a destination alone that fails too often
---@field rate? string|moontide.Rate deliveries per time on this host: "100/s", "30/m", "5/h"
---@field timeout? moontide.Duration wall time of a delivery with its waits, default "30s"
---@field on_dead? "continue"|"park"|"stop" what the lane, or the handler, does after a dead letter
---@field transaction? boolean|"kafka" run in ctx.tx, exactly once; "kafka": what it produces and its position in one Kafka transaction
---@field batch? { max: integer, wait?: moontide.Duration } for handle_batch
---@field allow? moontide.Allow
---@field config? table<string, any> name → default, or a moontide.ConfigField
---@field jit? boolean default false
---@field handle? fun(event: moontide.Event, ctx: moontide.Context): moontide.Verdict?
---@field handle_batch? fun(events: moontide.Event[], ctx: moontide.Context): moontide.Verdict|table<integer, moontide.Verdict>|nil
---@field init? fun(ctx: moontide.Context)
---@field on_unload? fun(ctx: moontide.Context)

---@class moontide.Retry
---@field max_attempts? integer default EVENT_BUS_MAX_ATTEMPTS, else 5
---@field base? moontide.Duration default "200ms"
---@field cap? moontide.Duration default "5m"
---@field jitter? "full"|"none" default "full"

---@class moontide.Breaker
---@field rate? number opens when this share of the calls failed, default 0.5
---@field calls? integer of at least so many, default 10
---@field window? moontide.Duration within this time, default "30s"
---@field open? moontide.Duration for at least so long, default "10s"

---@class moontide.Rate
---@field rate string "100/s", "30/m", "5/h"
---@field burst? integer at once after a pause, default what one second has

---@class moontide.Allow
---@field http? string[] url prefixes, and networks such as "10.0.0.0/8" that names may lead to
---@field db? true|string[] the main database, or names of databases
---@field mail? boolean
---@field kafka? string[] topics that kafka.produce may write to

---@class moontide.ConfigField
---@field type? "string"|"number"|"boolean"|"table"
---@field required? boolean
---@field secret? boolean never shown; also as <name>_file
---@field default? any
---@field help? string

--- Text such as "200ms", "5s", "1m", "2h", "7d", or seconds.
---@alias moontide.Duration string|number

--- What went wrong. `tostring` gives "class (code): message".
---@class moontide.Error
---@field class "transient"|"permanent"|"bug"|"limit"|"crash"|"undecodable"
---@field code? string SQLSTATE, HTTP or SMTP status, or a name such as "timeout"
---@field message string

--- Made by ctx.ack and its sisters; counts when returned or raised.
---@class moontide.Verdict
