"""A handler's rate: so many deliveries over time, and nobody else waits for it."""

import time

PLAIN = """
return { subscribes = { "Told" }, start = "earliest", rate = "5000/s",
         handle = function() end }
"""


def settled(host, handler):
    return host.metric("moontide_settled_total", handler=handler, how="ack")


def test_a_handler_over_its_rate_waits_and_the_others_do_not(database, make_host):
    """20/s by the settings, over what the file says: of 60 at once, 40 come in two seconds."""
    for n in range(60):
        database.publish("Told", "Thing", f"00000000-0000-4000-8000-{n:012d}", {"n": n})
    host = make_host(settings={"database": {"url": database.url}, "outbox": {"interval": "50ms"},
                               "handlers": {"slow": {"rate": "20/s"}}},
                     handlers={"slow": PLAIN, "quick": PLAIN})
    started = time.monotonic()
    host.start()
    host.wait(lambda: host.metric("moontide_rate_limited", handler="slow") == 1, 20, "limited")
    assert host.ask("/v1/handlers/slow").json()["limitedByRate"] is True
    host.wait(lambda: settled(host, "quick") == 60, 20, "the other is done")
    assert settled(host, "slow") <= 20 + 20 * (time.monotonic() - started) + 1
    host.wait(lambda: settled(host, "slow") == 60, 20, "all are done")
    assert time.monotonic() - started >= 40 / 20 - 0.1
    assert host.metric("moontide_rate_limited") == 0
    assert "limitedByRate" not in host.ask("/v1/handlers/slow").json()
