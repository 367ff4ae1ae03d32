"""What operators do with dead letters: groups, redrive with a rate and without loops, edit,
discard, and the question how many would pass now."""

import base64
import json
import time

from harness import envelope
from scenes import count, wait_count

KEY = "00000000-0000-4000-8000-000000000001"

BAD = """
return {
  subscribes = { "Bad" }, start = "earliest", retry = { max_attempts = 1 },
  handle = function(event, ctx)
    local p = event.payload
    if p.kind == "amount" then error("amount " .. tostring(p.n) .. " is wrong", 0) end
    if p.kind == "name" then return ctx.dead("no name for '" .. p.n .. "'") end
  end,
}
"""

GOOD = """
return { subscribes = { "Bad" }, start = "earliest", handle = function() end }
"""


def on_outbox(database, **more):
    return {"database": {"url": database.url}, "outbox": {"interval": "50ms"}, **more}


def bad_ones(database, make_host, n, handler=BAD, settings=None):
    """A host with n dead letters, of two kinds by turns."""
    host = make_host(settings=settings or on_outbox(database), handlers={"h": handler}).start()
    for i in range(n):
        database.publish("Bad", "Thing", KEY, {"kind": ("amount", "name")[i % 2], "n": i})
    wait_count(host, database, n, "event_dead_letters")
    return host


def cli(host, *args, **more):
    return host.cli(*args, "--url", host.url, **more)


def reload(host, text, times):
    host.handler("h", text)
    host.wait(lambda: host.metric("moontide_reloads_total", handler="h", result="loaded") >= times
              or len(host.log_lines("handler loaded")) >= times, 20, "the new version")


def runs_slow(host):
    """Is the version that sleeps the one that runs?"""
    return "sleep" in json.dumps(host.ask("/v1/handlers/h/bundle").json())


def test_equal_failures_are_one_group(database, make_host):
    """Requirement M2: by class, normalised message and version."""
    host = bad_ones(database, make_host, 5)
    groups = json.loads(cli(host, "dead-letters", "groups", "--json").stdout)["groups"]
    assert [(g["count"], g["class"], g["message"]) for g in groups] == [
        (3, "bug", "amount # is wrong"), (2, "permanent", "no name for ?")]
    one = groups[0]
    assert one["handler"] == "h" and one["version"] and one["error"] == "amount 0 is wrong"
    assert one["firstFailedAt"] <= one["lastFailedAt"]
    table = cli(host, "dead-letters", "groups", "--class", "permanent").stdout
    assert "no name for ?" in table and "amount" not in table
    listed = cli(host, "dead-letters", "list", "--json", "--fingerprint", one["fingerprint"])
    assert len(json.loads(listed.stdout)["deadLetters"]) == 3


def test_who_comes_back_again_and_again_is_left_out(database, make_host):
    """Requirement M2: a guard against loops; named or forced it goes."""
    host = bad_ones(database, make_host, 1)

    def redrive(*args):
        asked = cli(host, "dead-letters", "redrive", *args, env={"USER": "ann"})
        answer = json.loads(asked.stdout)
        host.wait(lambda: count(database, "event_dead_letters", "state = 'dead'") == 1, 20, "dead")
        return answer, asked.stderr

    for _ in range(5):
        answer, note = redrive("--handler", "h")
        assert answer == {"count": 1, "leftOut": 0} and not note
    answer, note = redrive("--handler", "h")
    assert answer == {"count": 0, "leftOut": 1} and "1 left out" in note
    answer, _ = redrive("--all", "--dry-run")
    assert answer == {"count": 0, "leftOut": 1, "dryRun": True}
    assert redrive("--all", "--force")[0]["count"] == 1
    id = database.value("select id from event_dead_letters")
    assert redrive(str(id))[0]["count"] == 1
    shown = json.loads(cli(host, "dead-letters", "show", str(id)).stdout)
    assert shown["redrives"] == 7 and shown["attempts"] == 8
    assert [h.get("redriven") for h in shown["history"]] == [
        None, 1, None, 2, None, 3, None, 4, None, 5, None, 6, None, 7, None]
    assert {h["who"] for h in shown["history"] if "redriven" in h} == {"ann"}
    assert shown["history"][0]["error"] == "amount 0 is wrong"


def test_a_redrive_keeps_its_rate_and_the_order(database, make_host):
    """Requirement M2: in the original order, rate-limited; other handlers do not wait for it."""
    recorder = BAD.replace("local p", "ctx.log.info('ran', { n = event.payload.n })\n    local p")
    host = bad_ones(database, make_host, 40, recorder)
    host.handler("other", BAD)
    host.wait(lambda: any(line["handler"] == "other" for line in host.log_lines("handler loaded")),
              20, "the other handler")
    wait_count(host, database, 80, "event_dead_letters")
    bad = cli(host, "dead-letters", "redrive", "--all", "--rate", "fast", check=False)
    assert bad.returncode == 1 and "100/s" in bad.stderr
    reload(host, GOOD.replace("function()", "function(event, ctx) ctx.log.info('again',"
                              " { n = event.payload.n })"), 2)
    host.handler("other", GOOD)
    host.wait(lambda: len(host.log_lines("handler loaded")) >= 4, 20, "both are repaired")
    started = time.monotonic()
    cli(host, "dead-letters", "redrive", "--handler", "h", "--rate", "20/s")
    cli(host, "dead-letters", "redrive", "--handler", "other")
    host.wait(lambda: count(database, "event_dead_letters",
                            "handler = 'other' and state = 'redriven'") == 40, 20, "the other")
    done = count(database, "event_dead_letters", "handler = 'h' and state = 'redriven'")
    assert done <= 2 + 20 * (time.monotonic() - started) + 1
    wait_count(host, database, 80, "event_dead_letters", "state = 'redriven'")
    assert time.monotonic() - started >= (40 - 2) / 20 - 0.1
    order = [line["n"] for line in host.log_lines("again")]
    assert [int(n) for n in order] == list(range(40))


def test_of_two_hosts_one_redrives_and_the_other_goes_on_when_it_is_gone(database, make_host):
    """Nothing runs twice because there are two; a host that is killed is missed after a lease."""
    first = bad_ones(database, make_host, 40, settings={
        "database": {"url": database.url, "lease": "2s"}, "outbox": {"interval": "50ms"}})
    second = make_host(settings=first.settings).start()
    slow = GOOD.replace("function()", "function(event, ctx) require('moontide.timer').sleep('50ms')"
                                      " ctx.log.info('again', { n = event.payload.n })")
    first.handler("h", slow)
    hosts = (first, second)
    for host in hosts:
        host.wait(lambda host=host: runs_slow(host), 20, "the slow version")
    cli(first, "dead-letters", "redrive", "--all")
    first.wait(lambda: count(database, "event_dead_letters", "state = 'redriven'") >= 5, 20, "some")
    one, other = hosts if first.log_lines("again") else hosts[::-1]
    assert not other.log_lines("again")
    done = [int(line["n"]) for line in one.log_lines("again")]
    assert done == list(range(len(done)))
    one.kill()
    other.wait(lambda: count(database, "event_dead_letters", "state = 'redriven'") == 40, 30, "all")
    rest = [int(line["n"]) for line in other.log_lines("again")]
    before = [int(line["n"]) for line in one.log_lines("again")]
    assert rest == list(range(rest[0], 40)) and rest[0] <= len(before) + 1
    assert len(before) - rest[0] <= 2  # what was under way when it was killed


def test_a_host_without_the_handler_leaves_its_letters_to_another(database, make_host):
    first = bad_ones(database, make_host, 5)
    first.stop()
    bare = make_host(settings=on_outbox(database)).start()
    cli(bare, "dead-letters", "redrive", "--all")
    bare.wait(lambda: count(database, "event_redrive_leases") == 0
              and count(database, "event_dead_letters", "state = 'redriving'") == 5, 20, "left")
    full = make_host(settings=on_outbox(database), handlers={"h": GOOD}).start()
    full.wait(lambda: count(database, "event_dead_letters", "state = 'redriven'") == 5, 20, "all")
    assert full.stop() == 0
    assert count(database, "event_redrive_leases", f"owner like '%/{full.process.pid}'") == 0


def test_an_edit_leaves_a_trail_and_never_loses_the_original(database, make_host):
    """Requirement M2: what, who, why, before and after; by the token's name."""
    host = make_host(settings=on_outbox(database), handlers={"h": BAD})
    (host.folder / "ops").write_text("token-of-the-ops-team\n")
    host.settings["http"]["tokens"] = [{"name": "ops", "token_file": str(host.folder / "ops"),
                                        "rights": ["operate"]}]
    host.write_conf()
    host.start()
    database.publish("Bad", "Thing", KEY, {"kind": "amount", "n": 5})
    wait_count(host, database, 1, "event_dead_letters")
    id = database.value("select id from event_dead_letters")
    ops = ("--token", "token-of-the-ops-team")
    original = json.loads(cli(host, "dead-letters", "show", str(id), *ops).stdout)
    cli(host, "dead-letters", "edit", str(id), "--payload", '{"n": 1.10, "kind": "fine"}',
        "--reason", "a typo", *ops)
    cli(host, "dead-letters", "edit", str(id), "--fact", "aggregate_type=Other", "--reason",
        "misfiled", *ops)
    shown = json.loads(cli(host, "dead-letters", "show", str(id), *ops).stdout)
    assert shown["body"] == '{"n": 1.10, "kind": "fine"}'  # as it was given, digit for digit
    assert shown["facts"]["aggregate_type"] == shown["aggregateType"] == "Other"
    first, second = shown["edits"]
    assert base64.b64decode(first["beforeBody"]).decode() == original["body"]
    assert base64.b64decode(first["afterBody"]).decode() == shown["body"]
    assert second["beforeFacts"] == original["facts"] and second["afterFacts"] == shown["facts"]
    assert [(e["who"], e["reason"]) for e in shown["edits"]] == [("ops", "a typo"),
                                                                 ("ops", "misfiled")]
    assert [h.get("edited") for h in shown["history"]] == [None, first["id"], second["id"]]
    cli(host, "dead-letters", "redrive", str(id), *ops)
    wait_count(host, database, 1, "event_dead_letters", "state = 'redriven'")
    late = cli(host, "dead-letters", "edit", str(id), "--payload", "{}", "--reason", "x", *ops,
               check=False)
    assert late.returncode == 4 and "redriven" in late.stderr


TEXT = "if type(p) == 'string' then error('text', 0) end "


def test_an_edit_changes_the_payload_inside_its_envelope(database, topics, make_host):
    """Every other byte of the record stays as it came."""
    topic = topics.create("edits", 1)
    host = make_host(settings={"database": {"url": database.url},
                               "kafka": {"brokers": topics.bootstrap, "topics": [topic]}},
                     handlers={"h": BAD.replace("if p.kind", TEXT + "if p.kind", 1)})
    text = json.dumps(dict(json.loads(envelope(1)), eventType="Bad",
                           payload={"kind": "amount", "n": 1}), indent=3)
    told = json.dumps(dict(json.loads(text), id="t2", payload='{"n": 1}'))
    topics.produce(topic, [("k", text, None), ("k", told, None)])
    host.start()
    wait_count(host, database, 2, "event_dead_letters")
    id = database.value("select id from event_dead_letters where place = 0")
    before = host.ask(f"/v1/dead-letters/{id}").json()["body"]
    assert before == text
    reply = host.ask(f"/v1/dead-letters/{id}/edit", "POST",
                     {"payload": {"kind": "fine"}, "reason": "why not"})
    assert reply.status == 200, reply.body
    after = host.ask(f"/v1/dead-letters/{id}").json()["body"]
    start = text.index('"payload": ') + len('"payload": ')
    end = text.index("}", start) + 1
    assert after == text[:start] + '{"kind": "fine"}' + text[end:]
    for body, why in (({"payload": 5, "reason": "r"}, "payload"), ({"reason": "r"}, "payload or"),
                      ({"payload": {}}, "reason"), ({"facts": {"id": "x"}, "reason": "r"}, "id"),
                      ({"facts": {"colour": "x"}, "reason": "r"}, "colour"),
                      ({"facts": {"metadata": "[]"}, "reason": "r"}, "metadata"),
                      ({"payload": {}, "reason": "r", "hadnler": "h"}, "hadnler")):
        refused = host.ask(f"/v1/dead-letters/{id}/edit", "POST", body)
        assert refused.status == 400 and why in refused.json()["detail"], refused.body
    told = database.value("select id from event_dead_letters where place = 1")
    refused = host.ask(f"/v1/dead-letters/{told}/edit", "POST", {"payload": {}, "reason": "r"})
    assert refused.status == 422 and "object or a list" in refused.json()["detail"]
    assert host.ask("/v1/dead-letters/99999/edit", "POST",
                    {"payload": {}, "reason": "r"}).status == 404
    assert count(database, "event_dead_letter_edits") == 1


def test_a_discard_has_a_reason_and_takes_filters(database, make_host):
    host = bad_ones(database, make_host, 4)
    refused = cli(host, "dead-letters", "discard", "--class", "bug", check=False)
    assert refused.returncode == 2 and "--reason" in refused.stderr
    assert cli(host, "dead-letters", "discard", "--reason", "all?", check=False).returncode == 1
    done = cli(host, "dead-letters", "discard", "--class", "bug", "--reason", "known")
    assert json.loads(done.stdout)["count"] == 2
    assert count(database, "event_dead_letters", "state = 'discarded' and note = 'known'") == 2
    assert count(database, "event_deliveries", "outcome = 'discarded'") == 2
    assert count(database, "event_dead_letters", "state = 'dead'") == 2


def test_how_many_would_pass_with_the_version_that_runs(database, make_host):
    """Requirement M2: one command; nothing is changed by it."""
    host = bad_ones(database, make_host, 50)
    conf = ("-c", str(host.conf))
    asked = json.loads(cli(host, "dry-run", "h", "--dead-letters", "--json", *conf).stdout)
    assert (asked["letters"], asked["passed"], asked["failed"]) == (50, 0, 50)
    reload(host, BAD.replace('p.kind == "amount"', 'p.kind == "amount" and p.n > 40'), 2)
    asked = json.loads(cli(host, "dry-run", "h", "--dead-letters", "--json", *conf).stdout)
    assert (asked["letters"], asked["passed"]) == (50, 21)
    amount, name = sorted(asked["groups"], key=lambda g: g["class"])
    assert (amount["count"], amount["passed"], amount["failed"]) == (25, 21, 4)
    assert len(amount["failures"]) == 4 and amount["failures"][0]["class"] == "bug"
    assert name["passed"] == 0 and name["failures"][0]["reason"].startswith("dead: no name")
    assert asked["version"] == host.ask("/v1/handlers/h").json()["version"]
    table = cli(host, "dry-run", "h", "--dead-letters", "--class", "bug", *conf).stdout
    assert "21 of 25 would pass" in table and "permanent" not in table
    # A repair that is not live yet: from the disk, where the host could not take it.
    (host.folder / "later").mkdir()
    (host.folder / "later" / "h.lua").write_text(GOOD)
    asked = json.loads(cli(host, "dry-run", "h", "--dead-letters", "--on-disk", "--json", *conf,
                           "--set", f"handlers.path={host.folder / 'later'}").stdout)
    assert asked["passed"] == 50
    gone = host.cli("dry-run", "h", "--dead-letters", *conf, "--url", "http://127.0.0.1:1",
                    check=False)
    assert gone.returncode == 3
    assert count(database, "event_dead_letters", "state = 'dead' and redrives = 0") == 50
