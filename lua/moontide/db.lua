--- moontide.db: SQL, without waiting for it.
--
-- C knows sessions (a pinned connection of one task); here they become the
-- public functions, the journal's entries and the transactions. A statement
-- outside a transaction is one of its own. In a dry run every statement runs
-- for real and is rolled back; in a spec nothing runs at all.

local host = ...

local prim = host.db

local M = {}

local ARRAY = prim.array_mark()

--- A Lua table as an SQL array. Without a type the statement decides, as in
--- `$1::text[]`. json.null, or a hole below `n`, is a NULL element.
---@param values table
---@param elem_type string?
---@return moontide.db.Array
function M.array(values, elem_type)
  if type(values) ~= "table" then error("db.array takes a table", 2) end
  return setmetatable({ values, elem_type or false, values.n or #values }, ARRAY)
end


--- A name quoted for SQL; "schema.table" keeps its dot.
---@param name string
---@return string
function M.ident(name)
  return prim.ident(name)
end


-- What the journal shows of a statement.
local function describe(sql, ...)
  local params = { ... }
  local n = select("#", ...)
  for i = 1, n do
    local p = params[i]
    if getmetatable(p) == ARRAY then params[i] = p[1] end
  end
  params.n = nil
  return { sql = sql, params = params }
end


-- true, result, err when the statement must not run.
local function journal(name, neutral, sql, ...)
  if host.mode() == "perform" then
    host.effect("sql", name)
    return false
  end
  local answered, result, err = host.effect("sql", name, describe(sql, ...))
  if answered and result == nil and err == nil then result = neutral end
  return answered, result, err
end


local function done(result, err)
  host.effect_done("sql", err == nil)
  return result, err
end


local function copy_sql(name, columns)
  local quoted = {}
  for i, column in ipairs(columns) do quoted[i] = prim.ident(column) end
  return ("COPY %s (%s) FROM STDIN"):format(prim.ident(name), table.concat(quoted, ", "))
end


local function check_copy(name, columns, rows)
  if type(name) ~= "string" or type(columns) ~= "table" or type(rows) ~= "table" then
    error("copy takes a table's name, a list of columns and a list of rows", 3)
  end
end


-- Transactions ------------------------------------------------------------

-- What the runner and we see of a transaction. Handlers see what shown() gives,
-- which cannot end it.
local Tx = {}
Tx.__index = Tx

-- A transaction must not lead to what is shown of it, or neither is ever freed:
-- LuaJIT's weak keys are held by their own values.
local inside = setmetatable({}, { __mode = "k" })

local Public = {}
Public.__index = Public
Public.__metatable = "transaction"


for _, name in ipairs { "query", "exec", "copy" } do
  Public[name] = function(tx, ...)
    local own = inside[tx]
    if not own then error(("call it as tx:%s(…)"):format(name), 2) end
    return own[name](own, ...)
  end
end


local function tx_new(session)
  return setmetatable({ session = session }, Tx)
end


function Tx:shown()
  local public = setmetatable({}, Public)
  inside[public] = self
  return public
end


-- Keeps the first error: whatever the handler makes of it, this transaction
-- cannot commit any more.
local function keep(self, result, err)
  if err ~= nil and self.first_error == nil then self.first_error = err end
  return result, err
end


local function note(self, ...)
  return done(keep(self, ...))
end


function Tx:query(sql, ...)
  local answered, result, err = journal("tx.query", {}, sql, ...)
  if answered then return keep(self, result, err) end
  return note(self, self.session:query(sql, ...))
end


function Tx:exec(sql, ...)
  local answered, result, err = journal("tx.exec", 0, sql, ...)
  if answered then return keep(self, result, err) end
  return note(self, self.session:exec(sql, ...))
end


function Tx:copy(name, columns, rows)
  check_copy(name, columns, rows)
  if host.mode() ~= "perform" then
    local answered, result, err =
      host.effect("sql", "tx.copy", { table = name, columns = columns, rows = rows })
    if answered then
      if result == nil and err == nil then result = #rows end
      return keep(self, result, err)
    end
  else
    host.effect("sql", "tx.copy")
  end
  return note(self, self.session:copy(copy_sql(name, columns), #columns, rows))
end


--- Internal: a first statement that is not waited for; what follows fails when
--- it did.
function Tx:enter(sql, ...)
  self.has_entered = true
  return self.session:enter(sql, ...)
end


--- Internal: the error of enter(), or nil; with `wait` once it must be known.
function Tx:refused(wait)
  if not self.has_entered then return nil end
  if wait then self.session:query("SELECT 1") end
  local _, err = self.session:entered()
  return err
end


--- The error of the first failed statement, or nil.
function Tx:failed()
  return self.first_error
end


-- In a spec there is no session at all.
local function begin(name)
  if host.mode() == "test" then return tx_new(nil) end
  local session, err = prim.acquire(name, true)
  if not session then return nil, err end
  return tx_new(session)
end


function Tx:rollback()
  if self.session then self.session:release() end
end


-- Redriven deliveries belong to no partition: their epoch is 0.
local function owned(sources, partitions, epochs)
  local s, p, e = {}, {}, {}
  for i, epoch in ipairs(epochs) do
    if epoch ~= 0 then
      local n = #s + 1
      s[n], p[n], e[n] = sources[i], partitions[i], epoch
    end
  end
  return M.array(s, "text"), M.array(p, "text"), M.array(e, "bigint")
end


--- Internal: the end of a delivery's transaction, with the proof that its
--- partitions still are ours.
function Tx:commit_fenced(handler, sources, partitions, epochs)
  if not self.session then return true end
  if host.mode() == "record" then
    self.session:release()
    return true
  end
  return self.session:commit(handler, owned(sources, partitions, epochs))
end


function Tx:commit()
  if not self.session then return true end
  if host.mode() == "record" then
    self.session:release()
    return true
  end
  return self.session:commit()
end


host.db_tx = {
  begin = function() return begin("main") end,
  --- The transaction behind what the handler sees as ctx.tx.
  of = function(public) return public and inside[public] end,
}


-- Databases ---------------------------------------------------------------

---@class moontide.db.Database
local Database = {}
Database.__index = Database


local function is_allowed(name)
  local allow = host.allow.db
  if name == "main" and allow == true then return true end
  if type(allow) ~= "table" then return false end
  for _, other in ipairs(allow) do
    if other == name then return true end
  end
  return false
end


local function check(self, what)
  host.check(what)
  if not is_allowed(self.name) then
    local wanted = self.name == "main" and "allow = { db = true }"
      or ('allow = { db = { "%s" } }'):format(self.name)
    error(("%s needs %s"):format(what, wanted), 3)
  end
end


-- One statement on a session of its own; in a dry run inside a transaction
-- that nobody commits.
local function alone(self, method, ...)
  local session, err = prim.acquire(self.name, host.mode() == "record")
  if not session then return done(nil, err) end
  local result
  result, err = session[method](session, ...)
  session:release()
  return done(result, err)
end


function Database:query(sql, ...)
  check(self, "db.query")
  local answered, result, err = journal("db.query", {}, sql, ...)
  if answered then return result, err end
  return alone(self, "query", sql, ...)
end


function Database:exec(sql, ...)
  check(self, "db.exec")
  local answered, result, err = journal("db.exec", 0, sql, ...)
  if answered then return result, err end
  return alone(self, "exec", sql, ...)
end


function Database:copy(name, columns, rows)
  check(self, "db.copy")
  check_copy(name, columns, rows)
  local answered, result, err =
    host.effect("sql", "db.copy", { table = name, columns = columns, rows = rows })
  if answered then
    if result == nil and err == nil then result = #rows end
    return result, err
  end
  return alone(self, "copy", copy_sql(name, columns), #columns, rows)
end


local function finish(tx, ok, result, err)
  if not ok then
    tx:rollback()
    error(result, 0)
  end
  if tx.first_error or (result == nil and err ~= nil) then
    tx:rollback()
    return nil, tx.first_error or err
  end
  local committed, commit_err = tx:commit()
  if not committed then return nil, commit_err end
  if result == nil then return true end
  return result
end


--- Run `fn(tx)` in a transaction of its own. It commits when fn returns, and
--- rolls back when fn raises, returns nil and an error, or a statement failed.
function Database:transaction(fn)
  check(self, "db.transaction")
  if type(fn) ~= "function" then error("db.transaction takes a function", 2) end
  local tx, err = begin(self.name)
  if not tx then return nil, err end
  return finish(tx, pcall(fn, tx:shown()))
end


local main = setmetatable({ name = "main" }, Database)

-- The functions of the main database, without a self.
for _, name in ipairs { "query", "exec", "copy", "transaction" } do
  M[name] = function(...) return main[name](main, ...) end
end


--- Another database of the configuration.
---@param name string
function M.use(name)
  if type(name) ~= "string" then error("db.use takes a name", 2) end
  local database = setmetatable({ name = name }, Database)
  return {
    query = function(...) return database:query(...) end,
    exec = function(...) return database:exec(...) end,
    copy = function(...) return database:copy(...) end,
    transaction = function(fn) return database:transaction(fn) end,
  }
end


return M
