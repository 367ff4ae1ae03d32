"""The host and its workers where memory errors, leaks and data races are told."""

import json
import re
import subprocess

from scenes import (copy_handlers, count, four_handlers, kill_a_worker, make_rng, make_seen,
                    recorder, shop_event, wait_count)
from servers import ROOT

FAILS = """
return {
  subscribes = { "BidWon" }, start = "earliest",
  retry = { max_attempts = 2, base = "10ms" },
  handle = function(event, ctx) error("never") end,
}
"""

EVENTS = 2000  # of each source
KEYS = 97

#: What the tools print on the stderr that host and workers share: their heads, and
#: UBSan's lines.
REPORT = re.compile(r"==\d+==ERROR|ERROR: \w+Sanitizer|WARNING: \w+Sanitizer|runtime error: ")

#: Handlers are slow there; what is looked for is not what a limit ends.
PATIENT = {"count": 2, "soft_limit": "20s", "hard_limit": "60s"}


def binary_of(preset, symbol):
    """The build of that preset, proven to carry the tool."""
    binary = ROOT / "build" / preset / "moontide"
    assert binary.exists(), f"no {binary}: ./dev build {preset}"
    names = subprocess.run(["nm", "-D", binary], capture_output=True, text=True, check=True).stdout
    assert symbol in names, f"{binary} is not built with {preset}"
    return binary


def stream(rng, first, number):
    return [shop_event(rng, i, KEYS) for i in range(first, first + number)]


def into_outbox(database, events):
    with database.connect() as connection, connection.cursor() as cursor:
        for _, key, _, body in events:
            cursor.execute("select publish_event(%s, %s, %s, %s)",
                           (body["eventType"], body["aggregateType"], key,
                            json.dumps(body["payload"])))
    connection.close()


def into_kafka(topics, topic, events):
    topics.produce(topic, [(key, json.dumps(body), None) for _, key, _, body in events])


class Scene:
    """Both sources (or the outbox alone), the four handlers, one that writes what
    it sees and one that fails."""

    def __init__(self, database, make_host, catcher, topics=None, patience=10, **host):
        self.database, self.topics, self.patience = database, topics, patience
        self.rng, self.sent, self.failing = make_rng("sanitizers"), 0, 0
        self.topic = topics.create("events", 4) if topics else None
        settings = four_handlers(database, [self.topic], topics and topics.bootstrap,
                                 mail=catcher.settings(), workers=PATIENT, drain_timeout="120s",
                                 outbox={"interval": "50ms"})
        if topics:
            settings["kafka"]["group_id"] = topics.prefix
            # No heartbeat is missed for want of speed.
            settings["rdkafka"] = {"session.timeout.ms": 45000}
        make_seen(database)
        self.host = make_host(settings=settings, handlers={"recorder": recorder(), "fails": FAILS},
                              **host)
        copy_handlers(self.host)

    def send(self, number):
        """`number` events into each source."""
        parts = [stream(self.rng, self.sent, number)]
        into_outbox(self.database, parts[0])
        if self.topics:
            parts.append(stream(self.rng, self.sent + number, number))
            into_kafka(self.topics, self.topic, parts[1])
        for part in parts:
            self.sent += len(part)
            self.failing += sum(body["eventType"] == "BidWon" for _, _, _, body in part)

    def await_count(self, *args, **kwargs):
        wait_count(self.host, self.database, *args, timeout=60 * self.patience, **kwargs)

    def run(self):
        host, database = self.host, self.database
        host.start(timeout=30 * self.patience)
        self.send(EVENTS // 2)
        self.await_count(self.sent // 4)
        host.wait(lambda: kill_a_worker(host, self.rng), 30, "a worker to kill")
        host.handler("recorder", recorder(version="2"))
        self.send(EVENTS // 2)
        # `seen` has what the handlers publish, too: our own are told by their type.
        self.await_count(1, where="version = '2'")
        self.await_count(self.failing, table="event_dead_letters")
        self.await_settled()
        assert count(database, "event_dead_letters") == self.failing
        assert count(database, "event_dead_letters", "handler <> 'fails'") == 0
        # And a drain while events flow.
        before = count(database)
        self.send(EVENTS // 4)
        self.await_count(before + 1)
        code = host.stop(timeout=60 * self.patience)
        assert host.log_lines("drained"), host.log_text()[-3000:]
        assert count(database) == database.value("select count(distinct event_id) from seen")
        return code

    def await_settled(self):
        def settled():
            written = count(self.database, "domain_events")
            if self.topics:
                written += self.sent // 2
            return count(self.database) == count(self.database, "event_audit_log") == written
        self.host.wait(settled, 60 * self.patience, "every event seen and audited")

    def assert_no_report(self):
        """Neither of the host nor of its workers, whose stderr is the host's."""
        text = self.host.log.read_text(errors="replace")
        found = REPORT.search(text)
        assert not found, text[found.start():found.start() + 8000]
        died = [line["reason"] for line in self.host.log_lines("worker died")]
        assert died == ["killed: SIGKILL"], died


def test_address_and_undefined_behaviour_sanitizers_find_nothing(
        database, topics, catcher, make_host):
    """Host, workers and their leaks at exit."""
    scene = Scene(database, make_host, catcher, topics, binary=binary_of("asan", "__asan_init"),
                  env={"ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1"})
    code = scene.run()
    scene.assert_no_report()
    assert code == 0


def test_the_thread_sanitizer_finds_nothing(database, catcher, make_host):
    """Without Kafka: gcc 12's TSan does not follow thrd_create, by which librdkafka
    starts its threads, and crashes."""
    scene = Scene(database, make_host, catcher, binary=binary_of("tsan", "__tsan_init"))
    code = scene.run()
    scene.assert_no_report()
    assert code == 0


def test_valgrind_finds_no_error_and_no_leak_in_the_host(
        database, topics, catcher, make_host, tmp_path):
    """The workers run without it: LuaJIT's own allocator and code are not for it."""
    report = tmp_path / "valgrind.txt"
    scene = Scene(database, make_host, catcher, topics, binary=binary_of("dev", ""), under=[
        "valgrind", "--tool=memcheck", "--trace-children=no", "--child-silent-after-fork=yes",
        "--leak-check=full", "--show-leak-kinds=definite,indirect",
        "--errors-for-leak-kinds=definite,indirect", "--num-callers=30", "--error-exitcode=99",
        f"--log-file={report}"])
    code = scene.run()
    text = report.read_text()
    assert "ERROR SUMMARY: 0 errors" in text, text[-12000:]
    assert code == 0
