"""The store is kept in order, and what a producer would suffer from is said before (fault row P6)."""

import re

from harness import ROOT, merge

NOBODY = "return { subscribes = { \"Nothing\" }, handle = function() end }"
KEY = "00000000-0000-4000-8000-000000000001"


def month(database, ahead):
    return database.value("select 'domain_events_' || to_char(now() at time zone 'utc'"
                          f" + interval '{ahead} months', 'YYYY_MM')")


def start(database, make_host, **more):
    return make_host(settings=merge({"database": {"url": database.url}}, more),
                     handlers={"nobody": NOBODY}).start()


def warnings(host):
    return [warning["why"] for warning in host.ask("/v1/status").json()["warnings"]]


def test_partitions_are_made_ahead_and_the_store_is_measured(database, make_host):
    for ahead in (0, 1, 3):
        database.query(f"drop table {month(database, ahead)}")
    host = start(database, make_host)
    host.wait(lambda: host.metric("moontide_store_partitions_ahead") == 3, 30, "they are made")
    bytes = host.metric("moontide_store_bytes")
    assert bytes == database.value("select sum(pg_total_relation_size(relid))"
                                   " from pg_partition_tree('domain_events')") > 0
    assert host.metric("moontide_store_default_rows") == 0
    assert warnings(host) == []
    status = host.ask("/v1/status").json()
    assert status["store"] == {"table": "domain_events", "bytes": bytes, "partitionsAhead": 3,
                               "defaultRows": 0}
    assert status["reasons"] == [] and "needs somebody" not in host.log_text()


def test_few_partitions_ahead_are_a_warning_with_the_reason(database, make_host):
    """Behind a hole nothing is ahead; and who lacks the right to make them says so."""
    database.query(f"drop table {month(database, 2)}")
    database.query("create or replace function moontide_create_partitions(ahead int default 3)"
                   " returns int language plpgsql as $$ begin raise insufficient_privilege"
                   " using message = 'not yours to make'; end $$", ())
    host = start(database, make_host)
    host.wait(lambda: warnings(host), 30, "a warning")
    assert host.metric("moontide_store_partitions_ahead") == 1
    assert len(warnings(host)) == 1
    assert "only 1 partition ahead" in warnings(host)[0] and "not yours" in warnings(host)[0]
    assert host.ask("/readyz").status == 200  # it is a warning: everything runs
    assert "warning: store: " in host.cli("status", "--url", host.url).stdout
    assert host.log_text().count("the store needs somebody") == 1
    database.query(f"create table {month(database, 2)} partition of domain_events for values from"
                   " (date_trunc('month', now(), 'UTC') + interval '2 months')"
                   " to (date_trunc('month', now(), 'UTC') + interval '3 months')")
    host.wait(lambda: host.metric("moontide_store_partitions_ahead") == 3, 30, "it is over")
    assert warnings(host) == [] and "in order again" in host.log_text()


def test_rows_in_the_default_partition_are_a_warning(database, make_host):
    host = start(database, make_host)
    database.publish("Old", "Thing", KEY, {}, occurred_at="1999-01-01T00:00:00Z")
    host.wait(lambda: warnings(host), 30, "a warning")
    assert "domain_events_default holds 1 row" in warnings(host)[0]
    assert host.metric("moontide_store_default_rows") == 1
    # The way out, as docs/STORE.md tells it: the row keeps its number.
    seq = database.value("select seq from domain_events_default")
    recipe = re.search(r"```sql\n(.*?)```", (ROOT / "docs" / "STORE.md").read_text(), re.S).group(1)
    database.query(recipe.replace("2031", "1999"))
    assert database.query("select seq from domain_events_1999_01") == [(seq,)]
    host.wait(lambda: not warnings(host), 30, "it is over")


def test_a_table_that_is_not_partitioned_has_only_a_size(database, make_host):
    database.query("create table plain (like domain_events including defaults)")
    host = start(database, make_host, outbox={"table": "plain"})
    host.wait(lambda: "moontide_store_bytes" in host.metrics(), 30, "measured")
    store = host.ask("/v1/status").json()["store"]
    assert (store["table"], store["partitionsAhead"], store["defaultRows"]) == ("plain", None, None)
    assert "moontide_store_partitions_ahead" not in host.metrics() and warnings(host) == []
