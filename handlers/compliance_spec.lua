local testing = require "moontide.testing"

describe("compliance", function()
  local compliance

  before_each(function()
    compliance = testing.handler("compliance", {})
  end)

  local function call(fields)
    local payload = { from = "+12025550100", to = "+12125550123", time_zone = "America/New_York" }
    for key, value in pairs(fields or {}) do payload[key] = value end
    return testing.event("CallCreated", {
      aggregate_type = "Call", aggregate_id = "6c1d9a52-6c8e-4b7e-9d0a-0a1b2c3d4e5f",
      occurred_at = "2026-03-02T15:30:00Z", -- 10:30 in New York
      payload = payload,
    })
  end

  local function facts(consent, do_not_call, calls)
    compliance:answer("tx.query", {
      { consent = consent, do_not_call = do_not_call, calls = calls },
    })
  end

  local function published(run)
    return run.effects:of("events.publish")[1].args
  end

  it("passes a call that has everything", function()
    facts(true, false, 0)
    local run = compliance:run(call())
    assert.equal("ack", run.verdict)
    assert.equal("ComplianceCheckPassed", published(run).type)
    assert.equal("10:30 America/New_York", run.effects:of("tx.exec")[1].args.params[7])
  end)

  it("names every rule that a call breaks", function()
    facts(nil, true, 3)
    local run = compliance:run(call { time_zone = "Asia/Tokyo" }) -- 00:30 there
    assert.equal("ack", run.verdict)
    assert.equal("ComplianceViolationDetected", published(run).type)
    assert.same({ "no_consent", "do_not_call", "outside_calling_hours", "too_many_calls" },
      published(run).payload.violations)
  end)

  it("does not ask the database about what is no number", function()
    local run = compliance:run(call { to = "not-a-number" })
    assert.same({ "invalid_number" }, published(run).payload.violations)
    assert.equal(0, #run.effects:of("tx.query"))
  end)

  it("keeps consents", function()
    local run = compliance:run(testing.event("ConsentRevoked", {
      payload = { phone = "+12125550123", channel = "call", reason = "asked" },
    }))
    local params = run.effects:of("tx.exec")[1].args.params
    assert.equal("ack", run.verdict)
    assert.equal("+12125550123", params[1])
    assert.is_false(params[3])
  end)

  it("retries when the facts cannot be read", function()
    compliance:answer("tx.query", nil, { class = "transient", code = "08006", message = "lost" })
    assert.equal("retry", compliance:run(call()).verdict)
  end)
end)
