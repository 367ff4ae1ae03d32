---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Requests to what `allow.http` names. Any status is an answer; redirects are
--- not followed. What changes something carries an Idempotency-Key.
---@class moontide.http
local http = {}

---@class moontide.http.Options
---@field json? any the body as JSON
---@field body? string
---@field form? table<string, any>
---@field headers? table<string, string>
---@field timeout? moontide.Duration default "30s"
---@field idempotency_key? string default: event id, handler and the call's number

---@class moontide.http.Request : moontide.http.Options
---@field method? string default "GET"
---@field url string

---@class moontide.http.Response
---@field status integer
---@field headers table<string, string> by lower-case name
---@field body string
local Response = {}

---@return any|nil value, moontide.Error? err
function Response:json() end

---@param request moontide.http.Request
---@return moontide.http.Response|nil, moontide.Error?
function http.request(request) end

---@param url string
---@param options? moontide.http.Options
---@return moontide.http.Response|nil, moontide.Error?
function http.get(url, options) end

---@param url string
---@param options? moontide.http.Options
---@return moontide.http.Response|nil, moontide.Error?
function http.post(url, options) end

---@param url string
---@param options? moontide.http.Options
---@return moontide.http.Response|nil, moontide.Error?
function http.put(url, options) end

---@param url string
---@param options? moontide.http.Options
---@return moontide.http.Response|nil, moontide.Error?
function http.patch(url, options) end

---@param url string
---@param options? moontide.http.Options
---@return moontide.http.Response|nil, moontide.Error?
function http.delete(url, options) end

return http
