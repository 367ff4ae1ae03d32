local testing = require "moontide.testing"

describe("audit", function()
  local audit

  before_each(function()
    audit = testing.handler("audit", {})
  end)

  local function rows_of(run)
    return run.effects:of("tx.copy")[1].args.rows
  end

  it("copies one row for an event of any type", function()
    local run = audit:run(testing.event("order.paid", {
      id = "e-1", aggregate_type = "Order", aggregate_id = "o-1",
      payload = { total = "59.90" }, metadata = { actorId = "ann", correlationId = "c-1" },
    }))
    assert.equal("ack", run.verdict)
    assert.equal("event_audit_log", run.effects:of("tx.copy")[1].args.table)
    local row = rows_of(run)[1]
    assert.equal("e-1", row[1])
    assert.equal("order.paid", row[2])
    assert.equal("ann", row[8])
    assert.equal("59.90", row[11].total)
  end)

  it("says of what is no table that it is JSON", function()
    for text, payload in pairs { ['"text"'] = "text", ["7.5"] = 7.5, ["true"] = true } do
      local row = rows_of(audit:run(testing.event("A", { payload = payload })))[1]
      assert.equal(text, row[11])
    end
  end)

  it("writes a batch in one statement, in order", function()
    local run = audit:run {
      testing.event("A", { id = "e-1" }), testing.event("B", { id = "e-2" }),
    }
    assert.equal(1, #run.effects:of("tx.copy"))
    assert.equal("e-1", rows_of(run)[1][1])
    assert.equal("e-2", rows_of(run)[2][1])
  end)

  it("keeps a version that is no number as the number in it, or 1", function()
    local versions = { { 3, 3, 3 }, { "v2", 2 }, { "draft", 1 }, { "1.10", 1 }, { 4e12, 1, 4e12 } }
    for _, case in ipairs(versions) do
      local event = testing.event("A", { version = case[1], aggregate_version = case[1] })
      local row = rows_of(audit:run(event))[1]
      assert.equal(case[2], row[3])
      assert.equal(case[3], row[6])
    end
  end)

  it("retries when the table does not take the rows", function()
    audit:answer("tx.copy", nil, { class = "transient", code = "57P01", message = "shutting down" })
    assert.equal("retry", audit:run(testing.event("A", {})).verdict)
  end)
end)
