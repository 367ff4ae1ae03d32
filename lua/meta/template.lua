---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Handlebars templates of the folder templates.path.
---@class moontide.template
local template = {}

---@class moontide.template.Template
local Template = {}

---@param data any
---@return string
function Template:render(data) end

--- Read a template; while the handler loads only.
---@param path string
---@return moontide.template.Template
function template.load(path) end

--- {{name a b key=value}} calls fn(a, b, options); a block also has
--- options.fn(context) and options.inverse(context).
---@param name string
---@param fn fun(...): any
function template.helper(name, fn) end

--- Give the partial at `path` a name of its own.
---@param name string
---@param path string
function template.partial(name, path) end

--- Text that is HTML already.
---@param text string
---@return moontide.template.Safe
function template.safe(text) end

---@class moontide.template.Safe

return template
