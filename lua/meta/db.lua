---@meta
error("lua/meta describes the API for editors: it is not for require")

--- SQL on the main database. Needs `allow = { db = true }`.
--- Values: nil is NULL, a table jsonb, db.array() an array. Back: NULL is nil,
--- numeric text, timestamptz RFC 3339 text, jsonb a table, big integers 64-bit.
---@class moontide.db
local db = {}

--- Rows as tables by column name.
---@param sql string with $1, $2 …
---@param ... any
---@return table[]|nil rows, moontide.Error? err
function db.query(sql, ...) end

--- How many rows were touched.
---@param sql string
---@param ... any
---@return integer|nil count, moontide.Error? err
function db.exec(sql, ...) end

--- COPY FROM STDIN: many rows in one statement.
---@param table_name string "schema.table" or "table"
---@param columns string[]
---@param rows any[][] values in the order of the columns
---@return integer|nil count, moontide.Error? err
function db.copy(table_name, columns, rows) end

--- A transaction beside the delivery's. Commits when fn returns; rolls back
--- when it raises, returns nil and an error, or a statement failed.
---@generic T
---@param fn fun(tx: moontide.db.Tx): T?, moontide.Error?
---@return T|true|nil result, moontide.Error? err
function db.transaction(fn) end

--- Another database, databases.<name>. Needs `allow = { db = { name } }`.
---@param name string
---@return moontide.db.Database
function db.use(name) end

--- A table as an SQL array. json.null is a NULL element.
---@param values any[]
---@param elem_type? string such as "text", "bigint"; else the statement decides
---@return moontide.db.Array
function db.array(values, elem_type) end

--- A name quoted for SQL.
---@param name string
---@return string
function db.ident(name) end

---@class moontide.db.Database
---@field query fun(sql: string, ...): table[]|nil, moontide.Error?
---@field exec fun(sql: string, ...): integer|nil, moontide.Error?
---@field copy fun(table_name: string, columns: string[], rows: any[][]): integer|nil, moontide.Error?
---@field transaction fun(fn: function): any, moontide.Error?

--- A transaction: ctx.tx, or what db.transaction gives.
---@class moontide.db.Tx
local Tx = {}

---@param sql string
---@param ... any
---@return table[]|nil rows, moontide.Error? err
function Tx:query(sql, ...) end

---@param sql string
---@param ... any
---@return integer|nil count, moontide.Error? err
function Tx:exec(sql, ...) end

---@param table_name string
---@param columns string[]
---@param rows any[][]
---@return integer|nil count, moontide.Error? err
function Tx:copy(table_name, columns, rows) end

---@class moontide.db.Array

return db
