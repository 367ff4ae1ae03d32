--- Tells people, and one webhook, about calls, bids, orders, shipments,
--- invoices and compliance violations.
--
-- One sending per event and channel, also over retries: a row is claimed before
-- a message goes out and marked after. Only a crash between the two sends again,
-- with the same idempotency key.

local crypto   = require "moontide.crypto"
local db       = require "moontide.db"
local http     = require "moontide.http"
local json     = require "moontide.json"
local mail     = require "moontide.mail"
local template = require "moontide.template"

template.helper("is", function(a, b)
  return a == b
end)

local LAYOUT = template.load("mail/layout.html.hbs")

--- The first line of a template is the subject, the rest the text.
local MESSAGES = {
  CallCompleted               = template.load("mail/call_completed.hbs"),
  BidWon                      = template.load("mail/bid_won.hbs"),
  ComplianceViolationDetected = template.load("mail/compliance_violation.hbs"),
  ["order.checkout_sent"]     = template.load("mail/order_checkout.hbs"),
  ShipmentInTransit           = template.load("mail/shipment.hbs"),
  ShipmentDelivered           = template.load("mail/shipment.hbs"),
  InvoiceIssued               = template.load("mail/invoice.hbs"),
  InvoiceOverdue              = template.load("mail/invoice.hbs"),
  InvoicePaid                 = template.load("mail/invoice.hbs"),
}

local CLAIM = [[
  INSERT INTO notifications AS known (event_id, channel, recipient) VALUES ($1, $2, $3)
  ON CONFLICT (event_id, channel) DO UPDATE SET attempts = known.attempts + 1
  WHERE known.state = 'sending'
  RETURNING attempts]]

local SENT = [[
  UPDATE notifications SET state = 'sent', sent_at = now() WHERE event_id = $1 AND channel = $2]]

local function recipient_of(event, config)
  if event.type == "ComplianceViolationDetected" then return config.compliance_email end
  local customer = event.payload.customer
  return event.payload.email or customer and customer.email
end

local function render(event)
  local text = MESSAGES[event.type]:render { event = event, payload = event.payload }
  local subject, body = text:match("^([^\n]*)\n+(.*)$")
  return subject, body, LAYOUT:render { subject = subject, text = body, event = event }
end

local function send_mail(event, to, key)
  local subject, text, html = render(event)
  return mail.send { to = to, subject = subject, text = text, html = html, idempotency_key = key }
end

--- The receiver proves the sender by the same HMAC over the body.
local function post_webhook(event, ctx, key)
  local body = json.encode {
    id = event.id, type = event.type, occurredAt = event.occurred_at,
    aggregateType = event.aggregate_type, aggregateId = event.aggregate_id,
    payload = event.payload,
  }
  local mac = crypto.hex(crypto.hmac("sha256", ctx.config.webhook_secret, body))
  local res, err = http.post(ctx.config.webhook_url, {
    body = body,
    headers = { ["Content-Type"] = "application/json", ["X-Signature"] = "sha256=" .. mac },
    timeout = "5s",
    idempotency_key = key,
  })
  if not res then return nil, err end
  if res.status >= 300 then return nil, "the webhook says " .. res.status end
  return true
end

--- Send unless it was sent before. True, or nil and an error.
local function once(event, ctx, channel, recipient, send)
  local claimed, err = db.query(CLAIM, event.id, channel, recipient)
  if not claimed then return nil, err end
  if #claimed == 0 then return true end
  local ok
  ok, err = send(ctx.idempotency_key(channel))
  if not ok then return nil, err end
  return db.exec(SENT, event.id, channel)
end

--- The error, unless it is for good: a refused address stays refused.
local function worth_a_retry(err)
  if type(err) == "table" and err.class == "permanent" then return nil end
  return err
end

---@type moontide.Handler
return {
  description = "Sends mails and webhooks about what customers and staff want to know.",
  subscribes  = {
    "CallCompleted", "BidWon", "ComplianceViolationDetected", "order.checkout_sent",
    "ShipmentInTransit", "ShipmentDelivered", "InvoiceIssued", "InvoiceOverdue", "InvoicePaid",
  },
  ordering    = "key",
  retry       = { max_attempts = 8, base = "500ms", cap = "5m" },
  timeout     = "30s",
  allow       = { db = true, mail = true, http = { "https://hooks.example.com/" } },
  config      = {
    compliance_email = { type = "string", default = "compliance@example.com",
                         help = "Who hears of compliance violations." },
    webhook_url      = { type = "string", default = "",
                         help = "Where every notification is posted. Empty: nowhere." },
    webhook_secret   = { type = "string", default = "", secret = true,
                         help = "Key of the HMAC in X-Signature." },
  },

  handle = function(event, ctx)
    local to = recipient_of(event, ctx.config)
    local mailed, mail_err = true, nil
    local posted, post_err = true, nil

    if to then
      mailed, mail_err = once(event, ctx, "email", to, function(key)
        return send_mail(event, to, key)
      end)
    end
    if ctx.config.webhook_url ~= "" then
      posted, post_err = once(event, ctx, "webhook", ctx.config.webhook_url, function(key)
        return post_webhook(event, ctx, key)
      end)
    end
    if not (mailed and posted) then
      local err = worth_a_retry(mail_err) or worth_a_retry(post_err)
      if err then return ctx.retry(err) end
      return ctx.dead(mail_err or post_err)
    end
    if not to and ctx.config.webhook_url == "" then return ctx.skip("nobody to tell") end
  end,
}
