local testing = require "moontide.testing"

describe("analytics", function()
  local analytics

  before_each(function()
    analytics = testing.handler("analytics", {})
  end)

  -- Parameters of the hourly statement: at, metric, kind, currency, total.
  local function hourly(run)
    return run.effects:of("tx.exec")[1].args.params
  end

  it("counts a completed call with its seconds and its cost", function()
    local run = analytics:run(testing.event("CallCompleted", {
      occurred_at = "2026-03-01T10:15:00Z",
      payload = { duration_seconds = 183, cost = "2.45", currency = "USD" },
    }))
    local p = hourly(run)
    assert.equal("ack", run.verdict)
    assert.same({ "calls", "call_cost" }, p[2])
    assert.same({ "completed", "completed" }, p[3])
    assert.same({ "", "USD" }, p[4])
    assert.same({ 183, "2.45" }, p[5])
  end)

  it("adds a batch to the hours and to the days in two statements", function()
    local run = analytics:run {
      testing.event("BidPlaced", { payload = { amount = "12.00", currency = "EUR" } }),
      testing.event("TransactionCreated", {
        payload = { type = "charge", amount = "59.90", currency = "USD" },
      }),
    }
    assert.equal(2, #run.effects:of("tx.exec"))
    assert.same({ "bids", "transactions" }, hourly(run)[2])
    assert.same({ "placed", "charge" }, hourly(run)[3])
  end)

  it("gives up the one event whose amount is no number", function()
    local run = analytics:run {
      testing.event("BidPlaced", { payload = { amount = "1.00", currency = "EUR" } }),
      testing.event("BidPlaced", { payload = { amount = "many", currency = "EUR" } }),
    }
    assert.equal("ack", run.verdicts[1].verdict)
    assert.equal("dead", run.verdicts[2].verdict)
    assert.same({ "1.00" }, hourly(run)[5])
  end)

  -- PostgreSQL's numeric knows them, and a sum with one of them is one for ever.
  for _, amount in ipairs { "NaN", "inf", "-Infinity", "0x10", "", "1e999" } do
    it("gives up the amount " .. amount, function()
      local run = analytics:run(testing.event("BidPlaced", {
        payload = { amount = amount, currency = "EUR" },
      }))
      assert.equal("dead", run.verdict)
      assert.equal(0, #run.effects:of("tx.exec"))
    end)
  end

  it("takes amounts as text and as numbers", function()
    local events = {}
    for i, amount in ipairs { "-12.50", 2.45, 3, "+.5", " 7 ", "1e3" } do
      events[i] = testing.event("BidPlaced", { payload = { amount = amount } })
    end
    assert.equal(6, #hourly(analytics:run(events))[5])
  end)

  it("gives up an event without a time and counts its neighbours", function()
    local timeless = testing.event("CallFailed", {})
    timeless.occurred_at = nil
    local run = analytics:run {
      testing.event("CallFailed", { occurred_at = "2026-03-01T10:15:00Z" }), timeless,
      testing.event("CallFailed", { occurred_at = "2026-03-01T11:15:00Z" }),
    }
    assert.equal("dead", run.verdicts[2].verdict)
    assert.equal("ack", run.verdicts[3].verdict)
    assert.equal(2, #hourly(run)[1])
    assert.equal(2, #hourly(run)[2])
  end)
end)
