--- Counts calls, bids, transactions and orders by the hour and by the day.
--
-- Each event adds to some metrics; a batch is summed in SQL, with exact
-- decimals, and added to the rows of its hours and days. Exactly once: the sums
-- commit together with the inbox rows of their events.

local db = require "moontide.db"

--- What an event of each type measures: add(metric, kind, total, currency).
local MEASURES = {
  CallCompleted = function(call, add)
    add("calls", "completed", call.duration_seconds)
    add("call_cost", "completed", call.cost, call.currency)
  end,
  CallFailed = function(_, add)
    add("calls", "failed")
  end,
  BidPlaced = function(bid, add)
    add("bids", "placed", bid.amount, bid.currency)
  end,
  BidWon = function(bid, add)
    add("bids", "won", bid.amount, bid.currency)
  end,
  TransactionCreated = function(transaction, add)
    add("transactions", transaction.type, transaction.amount, transaction.currency)
  end,
  ["order.created"] = function(order, add)
    add("orders", "created", order.total, order.currency)
  end,
  ["order.paid"] = function(order, add)
    add("orders", "paid", order.total, order.currency)
  end,
}

-- Rows are touched in one order, so that two batches cannot wait for each other.
local ADD = [[
  INSERT INTO %s AS known (%s, metric, kind, currency, events, total)
  SELECT %s, metric, kind, currency, count(*), coalesce(sum(total), 0)
  FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::numeric[])
       AS measured (at, metric, kind, currency, total)
  GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
  ON CONFLICT (%s, metric, kind, currency) DO UPDATE
  SET events = known.events + excluded.events, total = known.total + excluded.total]]

local HOURLY = ADD:format("event_analytics_hourly", "hour", "date_trunc('hour', at, 'UTC')", "hour")
local DAILY = ADD:format("event_analytics_daily", "day", "(at AT TIME ZONE 'UTC')::date", "day")

--- A decimal: tonumber and PostgreSQL's numeric also take NaN and Infinity,
--- and a sum with one of them would be one for ever.
local function is_amount(value)
  local digits = tostring(value):match("^%s*[-+]?(%d*%.?%d*)%s*$")
    or tostring(value):match("^%s*[-+]?(%d*%.?%d*)[eE][-+]?%d%d?%s*$")
  return digits ~= nil and digits:find("%d") ~= nil
end

--- The measures of one event, or nil and what is wrong with it.
local function measure(event)
  if not event.occurred_at then return nil, event.type .. " does not say when" end
  local measures, wrong = {}, nil
  MEASURES[event.type](event.payload or {}, function(metric, kind, total, currency)
    if total ~= nil and not is_amount(total) then
      wrong = ("%s of %s is no number: %s"):format(metric, event.type, tostring(total))
    end
    measures[#measures + 1] = { metric, tostring(kind or ""), total or 0, currency or "" }
  end)
  if wrong then return nil, wrong end
  return measures
end

--- One column for each parameter of the statement.
local function append(columns, event, measures)
  for _, m in ipairs(measures) do
    local n = #columns.at + 1
    columns.at[n], columns.metric[n], columns.kind[n] = event.occurred_at, m[1], m[2]
    columns.total[n], columns.currency[n] = m[3], m[4]
  end
end

---@type moontide.Handler
return {
  description = "Adds calls, bids, transactions and orders to the hourly and daily figures.",
  subscribes  = {
    "CallCompleted", "CallFailed", "BidPlaced", "BidWon", "TransactionCreated",
    "order.created", "order.paid",
  },
  ordering    = "none",
  concurrency = 1000,
  transaction = true,
  batch       = { max = 500, wait = "20ms" },

  handle_batch = function(events, ctx)
    local columns = { at = {}, metric = {}, kind = {}, currency = {}, total = {} }
    local verdicts = {}
    for i, event in ipairs(events) do
      local measures, wrong = measure(event)
      if measures then
        append(columns, event, measures)
      else
        verdicts[i] = ctx.dead(wrong)
      end
    end
    if #columns.at > 0 then
      for _, statement in ipairs { HOURLY, DAILY } do
        ctx.tx:exec(statement, db.array(columns.at), db.array(columns.metric),
          db.array(columns.kind), db.array(columns.currency), db.array(columns.total))
      end
    end
    return verdicts
  end,
}
