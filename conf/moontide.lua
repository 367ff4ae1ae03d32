-- moontide's configuration: a Lua file that returns a table. Every key has a
-- default; `moontide run --help-settings` lists them, docs/SETTINGS.md too.
-- Later wins: default, this file, environment, --set name=value.

return {
  -- PostgreSQL: positions, dead letters, flags, inbox, and the outbox when its
  -- table is there. Secrets can also be given as url_file.
  database = {
    url = os.getenv "DATABASE_URL" or "",
  },

  -- Kafka. "embedded" starts an in-process broker for a first try.
  kafka = {
    brokers = os.getenv "KAFKA_BROKERS" or "",
    group_id = "moontide",
    topics = { "^domain\\..*" },
  },

  -- Any librdkafka property, for TLS and SASL:
  -- rdkafka = {
  --   ["security.protocol"] = "SASL_SSL",
  --   ["sasl.mechanisms"]   = "SCRAM-SHA-512",
  --   ["sasl.username"]     = os.getenv "KAFKA_USER",
  --   ["sasl.password"]     = os.getenv "KAFKA_PASSWORD",
  -- },

  -- Overrides per handler, by its name.
  handlers = {
    -- notification = { config = { webhook_url = "https://hooks.example.com/moontide" } },
  },

  http = { listen = "127.0.0.1:7600" },
  log  = { level = "info", format = "human" },
}
