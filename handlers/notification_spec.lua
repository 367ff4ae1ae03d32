local crypto  = require "moontide.crypto"
local testing = require "moontide.testing"

describe("notification", function()
  local notification
  local hook = "https://hooks.example.com/moontide"

  before_each(function()
    notification = testing.handler("notification", {
      config = { webhook_url = hook, webhook_secret = "s3cret" },
    })
    notification:answer("db.query", { { attempts = 1 } })
  end)

  local function bid_won()
    return testing.event("BidWon", {
      id = "e-1", aggregate_type = "Bid", aggregate_id = "b-1",
      payload = {
        auction_id = "a-7", email = "ann@example.com", amount = "12.00", currency = "EUR",
      },
    })
  end

  it("sends one mail and one signed webhook", function()
    local run = notification:run(bid_won())
    local sent = run.effects:of("mail.send")
    local posted = run.effects:of("http.post")
    assert.equal("ack", run.verdict)
    assert.equal(1, #sent)
    assert.equal("ann@example.com", sent[1].args.to)
    assert.matches("12.00 EUR", sent[1].args.text)
    assert.equal(1, #posted)
    assert.equal("e-1:notification:webhook", posted[1].args.idempotency_key)
    assert.equal("sha256=" .. crypto.hex(crypto.hmac("sha256", "s3cret", posted[1].args.body)),
      posted[1].args.headers["X-Signature"])
  end)

  it("does not send what was sent before", function()
    notification:answer("db.query", {})
    local run = notification:run(bid_won())
    assert.equal("ack", run.verdict)
    assert.equal(0, #run.effects:of("mail.send"))
    assert.equal(0, #run.effects:of("http.post"))
  end)

  it("retries a webhook that fails, after the mail is out", function()
    notification:answer("http.post", { status = 503 })
    local run = notification:run(bid_won())
    assert.equal("retry", run.verdict)
    assert.equal(1, #run.effects:of("mail.send"))
    assert.matches("503", run.reason)
  end)

  it("retries the webhook beside a mail that is refused for good", function()
    notification:answer("mail.send", nil, { class = "permanent", code = "550", message = "who" })
    notification:answer("http.post", { status = 503 })
    assert.equal("retry", notification:run(bid_won()).verdict)
    notification:answer("http.post", { status = 200 })
    assert.equal("dead", notification:run(bid_won()).verdict)
  end)

  it("escapes what comes from outside in HTML", function()
    local event = bid_won()
    event.payload.auction_id = "<script>"
    local sent = notification:run(event).effects:of("mail.send")[1].args
    assert.is_nil(sent.html:find("<script>", 1, true))
    assert.matches("&lt;script&gt;", sent.html)
  end)

  it("tells compliance of a violation", function()
    local run = notification:run(testing.event("ComplianceViolationDetected", {
      payload = { phone = "+12125550123", summary = "no consent", violations = { "no_consent" } },
    }))
    assert.equal("compliance@example.com", run.effects:of("mail.send")[1].args.to)
  end)

  it("skips when there is nobody to tell", function()
    notification = testing.handler("notification", { config = { webhook_url = "" } })
    local event = testing.event("CallCompleted", { payload = { duration_seconds = 3 } })
    assert.equal("skip", notification:run(event).verdict)
  end)
end)
