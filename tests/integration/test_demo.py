"""The demo producer: all that a marketplace would publish, and life cycles that hold together."""

import random
import sys
from collections import defaultdict

from servers import ROOT

sys.path.insert(0, str(ROOT / "tools"))
from demo import Market  # noqa: E402

ASKED_FOR = """
    AccountCreated AccountActivated AccountSuspended BalanceUpdated CreditLimitChanged
    CallCreated CallRouted CallAnswered CallCompleted CallFailed
    BidPlaced BidUpdated BidWon BidLost BidExpired
    ConsentGranted ConsentRevoked
    TransactionCreated PaymentProcessed InvoiceGenerated RefundIssued""".split()


class Written:
    """Stands where the outbox and the topics do; keeps what each aggregate lived through."""

    def __init__(self):
        self.lives = defaultdict(list)

    def publish(self, *args):
        type, _, aggregate_id, payload, story = args[-5:]
        assert story["correlationId"] and isinstance(payload, dict)
        self.lives[aggregate_id].append(type)

    def raw(self, *args):
        pass


def test_the_demo_publishes_every_event_type_in_believable_order():
    """S1-12 to S1-16: the event types, each in its place in a life cycle."""
    written, rng = Written(), random.Random(7)
    market = Market(written, written, rng)
    for _ in range(400):
        for _ in market.open_scene():
            pass
    seen = {type for life in written.lives.values() for type in life}
    assert set(ASKED_FOR) <= seen, sorted(set(ASKED_FOR) - seen)
    for life in written.lives.values():
        assert life[0] not in ("CallCompleted", "BidWon", "BidLost", "BidExpired", "BidUpdated",
                               "AccountSuspended", "order.paid"), life
        assert not ("BidWon" in life and "BidExpired" in life), life
