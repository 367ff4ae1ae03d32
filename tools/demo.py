#!/usr/bin/python3
"""The demo producer: life cycles of a marketplace for phone calls, and of a shop.

Accounts, consents, orders, shipments, invoices and money are stored through
publish_event() in one transaction each, as a program with an outbox does.
Calls and bids go to Kafka as native JSON envelopes. A few things are wrong on
purpose: a phone number that is none, a call without consent, a mailbox that
refuses, a record that is not JSON.
"""

import argparse
import json
import random
import signal
import sys
import time
import urllib.request
import uuid
from datetime import datetime, timedelta, timezone

import psycopg2
from confluent_kafka import Producer

CALLS_TOPIC, BIDS_TOPIC = "demo.calls", "demo.bids"
FIRST = "Ada Grace Alan Edsger Barbara Ken Margaret Linus Radia Dennis Frances Donald".split()
LAST = "Okafor Lindqvist Moreau Tanaka Silva Novak Haddad Costa Weber Iyer Flores Kowalski".split()
ZONES = {"212": "America/New_York", "312": "America/Chicago", "303": "America/Denver",
         "415": "America/Los_Angeles"}
GOODS = [("TEA-1", "Sencha, 100 g", "12.50"), ("POT-2", "Teapot, cast iron", "64.00"),
         ("CUP-4", "Four cups", "28.90"), ("BOX-1", "Tea chest", "39.00")]


def now(offset=0.0):
    moment = datetime.now(timezone.utc) + timedelta(seconds=offset)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Outbox:
    """publish_event() on one connection; a scene is one transaction."""

    def __init__(self, url):
        self.connection = psycopg2.connect(url)
        self.sent = 0

    def publish(self, type, aggregate_type, aggregate_id, payload, metadata):
        with self.connection.cursor() as cursor:
            cursor.execute("select publish_event(%s, %s, %s, %s, %s)",
                           (type, aggregate_type, aggregate_id, json.dumps(payload),
                            json.dumps(metadata)))
        self.connection.commit()
        self.sent += 1


class Topics:
    """Native JSON envelopes with the headers that make routing cheap."""

    def __init__(self, brokers):
        self.producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20,
                                  "enable.idempotence": True})
        self.sent = 0

    def publish(self, topic, type, aggregate_type, aggregate_id, payload, metadata):
        id, at = str(uuid.uuid4()), now()
        body = {"id": id, "eventType": type, "eventVersion": 1, "aggregateType": aggregate_type,
                "aggregateId": aggregate_id, "occurredAt": at, "payload": payload,
                "metadata": metadata}
        headers = {"id": id, "type": type, "aggregate_type": aggregate_type, "version": "1",
                   "occurred_at": at, "correlation_id": metadata["correlationId"]}
        self.raw(topic, aggregate_id, json.dumps(body), headers)

    def raw(self, topic, key, value, headers=None):
        self.producer.produce(topic, key=key, value=value, headers=headers)
        self.producer.poll(0)
        self.sent += 1


class Market:
    """The little world: who is there, and what happens to them next."""

    def __init__(self, outbox, topics, rng):
        self.outbox, self.topics, self.rng = outbox, topics, rng
        self.accounts, self.consented, self.number = [], [], int(time.time()) % 100000

    def story(self, actor="demo"):
        return {"actorId": actor, "correlationId": str(uuid.uuid4()), "sourceModule": "demo"}

    def store(self, *args):
        if self.outbox:
            self.outbox.publish(*args)

    def send(self, *args):
        if self.topics:
            self.topics.publish(*args)

    def person(self):
        name = f"{self.rng.choice(FIRST)} {self.rng.choice(LAST)}"
        box = self.rng.choices([name.lower().replace(" ", "."), "busy", "refuse"], (90, 7, 3))[0]
        return name, f"{box}@example.com"

    def phone(self):
        return f"+1{self.rng.choice(list(ZONES))}555{self.rng.randrange(10000):04d}"

    def money(self, low, high):
        return f"{self.rng.uniform(low, high):.2f}"

    # --- scenes: each yields between its events ---------------------------------

    def account(self):
        name, address = self.person()
        id, story = str(uuid.uuid4()), self.story()
        kind = self.rng.choice(["buyer", "seller"])
        self.store("AccountCreated", "Account", id,
                   {"name": name, "email": address, "kind": kind, "currency": "USD"}, story)
        yield
        self.store("AccountActivated", "Account", id, {}, story)
        self.accounts = [(id, name, address)] + self.accounts[:49]
        yield
        self.store("BalanceUpdated", "Account", id,
                   {"balance": self.money(50, 900), "currency": "USD"}, story)
        yield
        self.store("CreditLimitChanged", "Account", id,
                   {"limit": self.money(1000, 5000), "currency": "USD"}, story)
        if self.rng.random() < 0.1:
            yield
            self.store("AccountSuspended", "Account", id, {"reason": "unpaid invoices"}, story)

    def consent(self):
        number = self.phone()
        self.store("ConsentGranted", "Consent", str(uuid.uuid5(uuid.NAMESPACE_URL, number)),
                   {"phone": number, "channel": "call", "source": "web form"}, self.story())
        self.consented = [number] + self.consented[:99]
        yield
        if self.rng.random() < 0.1:
            self.consented.remove(number)
            self.store("ConsentRevoked", "Consent", str(uuid.uuid5(uuid.NAMESPACE_URL, number)),
                       {"phone": number, "channel": "call", "reason": "asked to stop"},
                       self.story())

    def callee(self):
        chance = self.rng.random()
        if chance < 0.04:
            return "not-a-number"
        if chance < 0.15 or not self.consented:
            return self.phone()  # nobody gave consent for this one
        return self.rng.choice(self.consented)

    def call(self):
        id, story, to = str(uuid.uuid4()), self.story("dialer"), self.callee()
        buyer, name, address = (self.rng.choice(self.accounts) if self.accounts
                                else (str(uuid.uuid4()), *self.person()))
        common = {"from": "+18005550100", "to": to,
                  "time_zone": ZONES.get(to[2:5], "America/New_York")}
        self.send(CALLS_TOPIC, "CallCreated", "Call", id, {**common, "campaign": "spring"}, story)
        yield
        self.send(CALLS_TOPIC, "CallRouted", "Call", id, {**common, "buyer_id": buyer}, story)
        yield
        if self.rng.random() < 0.15:
            reason = self.rng.choice(["busy", "no answer", "carrier error"])
            self.send(CALLS_TOPIC, "CallFailed", "Call", id, {**common, "reason": reason}, story)
            return
        self.send(CALLS_TOPIC, "CallAnswered", "Call", id, common, story)
        yield
        seconds, cost = self.rng.randrange(20, 900), self.money(0.4, 9)
        self.send(CALLS_TOPIC, "CallCompleted", "Call", id, {
            **common, "buyer_id": buyer, "email": address, "name": name,
            "duration_seconds": seconds, "cost": cost, "currency": "USD",
            "summary": f"{name}: {seconds // 60} min {seconds % 60} s, {cost} USD"}, story)
        yield
        self.store("TransactionCreated", "Transaction", str(uuid.uuid4()),
                   {"type": "charge", "amount": cost, "currency": "USD", "account_id": buyer}, story)

    def bid(self):
        auction, story = str(uuid.uuid4()), self.story("exchange")
        bidders = [(str(uuid.uuid4()), *self.person(), self.money(2, 40))
                   for _ in range(self.rng.randrange(2, 5))]
        ids = {bidder[0]: str(uuid.uuid4()) for bidder in bidders}
        for bidder, name, address, amount in bidders:
            self.send(BIDS_TOPIC, "BidPlaced", "Bid", ids[bidder], {
                "auction_id": auction, "bidder_id": bidder, "amount": amount,
                "currency": "USD"}, story)
            yield
        if self.rng.random() < 0.2:
            for bidder, _, _, amount in bidders:
                self.send(BIDS_TOPIC, "BidExpired", "Bid", ids[bidder], {
                    "auction_id": auction, "bidder_id": bidder, "amount": amount,
                    "currency": "USD"}, story)
            return
        bidder, name, address, amount = bidders[0]
        bidders[0] = (bidder, name, address, f"{float(amount) + 1:.2f}")
        self.send(BIDS_TOPIC, "BidUpdated", "Bid", ids[bidder], {
            "auction_id": auction, "bidder_id": bidder, "amount": bidders[0][3],
            "former": amount, "currency": "USD"}, story)
        yield
        best = max(bidders, key=lambda b: float(b[3]))
        for bidder, name, address, amount in bidders:
            won = bidder == best[0]
            self.send(BIDS_TOPIC, "BidWon" if won else "BidLost", "Bid", ids[bidder], {
                "auction_id": auction, "bidder_id": bidder, "name": name, "email": address,
                "amount": amount, "currency": "USD",
                "summary": f"{name} {'won' if won else 'lost'} with {amount} USD"}, story)

    def garbage(self):
        if self.topics:
            self.topics.raw(CALLS_TOPIC, "broken", self.rng.choice(
                ["{\"eventType\": \"CallCreated\", ", "hello?", "\xff\xfe".encode("latin-1")]))
        yield

    def order(self):
        id, story = str(uuid.uuid4()), self.story("shop")
        name, address = self.person()
        self.number += 1
        number = f"A{self.number}"
        goods = self.rng.sample(GOODS, self.rng.randrange(1, 4))
        total = f"{sum(float(price) for _, _, price in goods):.2f}"
        about = {"number": number, "name": name, "email": address, "currency": "USD"}
        self.store("order.created", "Order", id, {
            **about, "customer": {"name": name, "email": address}, "total": total,
            "items": [{"sku": s, "name": n, "quantity": 1, "price": p} for s, n, p in goods]},
            story)
        yield
        self.store("order.checkout_sent", "Order", id, {
            **about, "checkout_url": f"https://shop.example.com/c/{id}"}, story)
        yield
        self.store("order.payment_processing", "Order", id, about, story)
        yield
        if self.rng.random() < 0.15:
            self.store("order.payment_failed", "Order", id,
                       {**about, "reason": "card declined"}, story)
            return
        self.store("order.paid", "Order", id, {**about, "total": total, "method": "card"}, story)
        self.store("PaymentProcessed", "Transaction", str(uuid.uuid4()),
                   {"type": "payment", "amount": total, "currency": "USD",
                    "order_number": number}, story)
        yield from self.invoice({**about, "amount": total}, story)
        yield from self.shipment({**about, "amount": total}, story)

    def invoice(self, about, story):
        id = str(uuid.uuid4())
        invoice = {**about, "order_number": about["number"], "number": "I" + about["number"][1:],
                   "due_date": now(14 * 86400)[:10]}
        self.store("InvoiceGenerated", "Invoice", id, invoice, story)
        self.store("InvoiceIssued", "Invoice", id, invoice, story)
        yield
        self.store("InvoicePaid" if self.rng.random() < 0.8 else "InvoiceOverdue", "Invoice", id,
                   invoice, story)
        yield

    def shipment(self, about, story):
        id = str(uuid.uuid4())
        parcel = {**about, "order_number": about["number"], "carrier": "Moon Post",
                  "tracking": f"MP{self.rng.randrange(10**9):09d}"}
        self.store("FulfillmentCreated", "Fulfillment", str(uuid.uuid4()), parcel, story)
        for step in ("ShipmentDrafted", "ShipmentReady", "ShipmentInTransit", "ShipmentDelivered"):
            yield
            self.store(step, "Shipment", id, parcel, story)
        if self.rng.random() < 0.1:
            yield
            self.store("RefundIssued", "Transaction", str(uuid.uuid4()),
                       {"type": "refund", "amount": about["amount"], "currency": "USD",
                        "order_number": about["number"], "reason": "damaged"}, story)

    SCENES = (("account", 3), ("consent", 6), ("call", 8), ("bid", 3), ("order", 5),
              ("garbage", 0.6))

    def open_scene(self):
        names, weights = zip(*self.SCENES)
        return getattr(self, self.rng.choices(names, weights)[0])()


def embedded_brokers(status_url):
    """Where the host's in-process broker listens, asked of the host itself."""
    with urllib.request.urlopen(status_url + "/v1/status", timeout=10) as reply:
        return json.load(reply)["kafka"]["bootstrap"]


def play(market, rate, until):
    """Keep some scenes open and advance one of them `rate` times a second."""
    scenes = [market.account(), market.consent(), market.consent()]
    pause = 1.0 / rate
    while not until():
        if len(scenes) < 12:
            scenes.append(market.open_scene())
        scene = market.rng.choice(scenes)
        if next(scene, "ended") == "ended":
            scenes.remove(scene)
        time.sleep(pause)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--database-url", help="outbox; none: nothing is stored")
    parser.add_argument("--brokers", help="Kafka; none: nothing is sent")
    parser.add_argument("--host", help="URL of a moontide host with an embedded broker")
    parser.add_argument("--rate", type=float, default=20, help="events a second")
    parser.add_argument("--count", type=int, default=0, help="stop after so many; 0: never")
    parser.add_argument("--seed", type=int, default=None)
    args = parser.parse_args()

    brokers = args.brokers or (args.host and embedded_brokers(args.host))
    outbox = Outbox(args.database_url) if args.database_url else None
    topics = Topics(brokers) if brokers else None
    if not outbox and not topics:
        parser.error("nowhere to write: give --database-url, --brokers or --host")
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    signal.signal(signal.SIGINT, lambda *_: ended.append(True))

    def sent():
        return (outbox.sent if outbox else 0) + (topics.sent if topics else 0)

    try:
        play(Market(outbox, topics, random.Random(args.seed)), args.rate,
             lambda: ended or (args.count and sent() >= args.count))
    except psycopg2.OperationalError as fault:
        if not ended:
            sys.exit(f"demo: {fault}")
    if topics:
        topics.producer.flush(5)
    print(f"{outbox.sent if outbox else 0} stored, {topics.sent if topics else 0} sent", flush=True)


if __name__ == "__main__":
    main()
