---@meta
error("lua/meta describes the API for editors: it is not for require")

--- Digests are bytes; `hex` and `base64` write them.
---@class moontide.crypto
local crypto = {}

---@param algorithm "sha256"|"sha512"|"sha1"
---@param key string
---@param s string
---@return string bytes
function crypto.hmac(algorithm, key, s) end

---@param algorithm "sha256"|"sha512"|"sha1"
---@param s string
---@return string bytes
function crypto.hash(algorithm, s) end

---@param bytes string
---@return string
function crypto.hex(bytes) end

---@param bytes string
---@return string
function crypto.base64(bytes) end

---@param n integer
---@return string bytes
function crypto.random(n) end

--- In a time that does not tell where they differ.
---@param a string
---@param b string
---@return boolean
function crypto.equal(a, b) end

return crypto
