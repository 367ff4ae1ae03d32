"""Rows B: brokers that answer with errors, go, move, lose and come back."""

import json
import os
import signal
import threading
import time

import pytest
from broker import MockCluster
from harness import SLOWER, Topics
from oracle import latencies
from servers import KafkaCluster, wait_for
from test_a_kills import PARTITIONS, WINDOW, narrow, owns_all


def longest_wait(stage, handler="tx"):
    """Of any acknowledged event for its effect: what a stuck partition would show."""
    return max(took for _, took in latencies(stage.database, stage.journal, handler))


def test_B1_brokers_answer_with_errors(stage):
    mock = MockCluster(stage.folder)
    stage.servers.append(mock)
    mock.tell("topic", "events", PARTITIONS)
    host = stage.host(stage.on_kafka(bootstrap=mock.bootstrap, topics=["events"],
                                     kafka={"group_id": "moontide"}))
    host.start()
    stage.produce("kafka", to=mock.bootstrap, topic="events", rate=200, idempotent=0)
    stage.progress(host)
    until = time.monotonic() + stage.sized(25, 1800)
    while time.monotonic() < until:
        mock.inject(stage.rng, stage.rng.uniform(0.01, 0.2))
        stage.fault()
        if stage.rng.random() < 0.3:
            mock.tell("leader", "events", stage.rng.randrange(PARTITIONS), stage.rng.randint(1, 3))
        stage.journaled(stage.journal.count() + 200)
    mock.heal()
    stage.progress(host)
    stage.drain(host)
    stage.check_both(stage.journal.count())  # its bound is the other rows' subject
    stage.figures["recovery"] = longest_wait(stage)
    assert longest_wait(stage) < 30 * SLOWER
    assert host.stop() == 0


# --- three brokers --------------------------------------------------------------

three_brokers = pytest.mark.xdist_group("three brokers")


@pytest.fixture(scope="module")
def cluster(scratch):
    nodes = KafkaCluster(scratch / "cluster")
    try:
        yield nodes.start()
    finally:
        nodes.stop()


def on_cluster(stage, cluster, name):
    topics = Topics(cluster, f"{name}.{stage.seed}")
    topic = topics.create("events", PARTITIONS, replicas=3)
    host = stage.host(stage.on_kafka(bootstrap=cluster.bootstrap, topics=[topic],
                                     kafka={"group_id": topics.prefix}, workers={"count": 2}))
    host.start()
    stage.produce("kafka", to=cluster.bootstrap, topic=topic, rate=stage.sized(300, 2000))
    stage.progress(host, limit=60)
    return host, topic


def goes_on(stage, host, cluster):
    """All that was written until now comes out, and the cluster is whole again."""
    number = stage.journal.count()
    with stage.recovery(30, "recovery"):
        host.wait(lambda: stage.count_of("tx") >= number and stage.journal.count() > number,
                  60 * SLOWER, "events flow again")
    host.wait(cluster.is_whole, 120 * SLOWER, "all replicas in sync")


@three_brokers
def test_B2_one_of_three_brokers_is_restarted(stage, cluster):
    host, _ = on_cluster(stage, cluster, "B2")
    for turn in range(stage.sized(2, 20)):
        node = cluster.nodes[turn % 3]
        if stage.rng.random() < 0.5:
            node.end(signal.SIGTERM, timeout=60)
        else:
            node.end(signal.SIGKILL)
        stage.fault()
        node.start()
        goes_on(stage, host, cluster)
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


@three_brokers
def test_B3_a_leader_is_isolated(stage, cluster):
    """Stopped, not cut off: what it is asked is not answered, and when it goes on it
    takes itself for the leader that it no longer is. A cut of the network, as the
    plan has it, wants namespaces and so root."""
    host, topic = on_cluster(stage, cluster, "B3")
    for _ in range(stage.sized(1, 5)):
        node = cluster.leader(topic)
        os.kill(node.process.pid, signal.SIGSTOP)
        stage.fault()
        try:
            wait_for(lambda: cluster.leader(topic) is not node, 30 * SLOWER, "another leader")
            stage.hold(stage.sized(8, 30))
        finally:
            os.kill(node.process.pid, signal.SIGCONT)
        goes_on(stage, host, cluster)
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


# --- one broker -------------------------------------------------------------------


def test_B4_new_partitions_are_read_from_their_start(stage):
    from confluent_kafka.admin import NewPartitions

    host = stage.host(stage.on_kafka()).start()
    stage.produce("kafka", rate=300, count=600)
    stage.progress(host)
    stage.topics.admin.create_partitions([NewPartitions(stage.topic, 12)])[stage.topic].result(30)
    stage.fault()
    stage.producers[0].wait()
    # A producer that knows all of them, before the host does.
    stage.produce("kafka", rate=300, count=stage.sized(1200, 20_000), first_key=1000)
    host.wait(lambda: owns_all(host, 12), 60, "all partitions")
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert any(end > 0 for p, end in stage.topics.ends(stage.topic).items() if p >= PARTITIONS)
    assert host.stop() == 0


def make_again(stage, count):
    """The same name, another topic, with other events."""
    stage.topics.admin.delete_topics([stage.topic])[stage.topic].result(30)
    stage.fault()
    wait_for(lambda: stage.topic not in stage.topics.admin.list_topics(timeout=5).topics, 30,
             "the topic gone")
    assert stage.topics.create("events", PARTITIONS) == stage.topic
    stage.produce("kafka", count=count, first_key=1000).wait()


def test_B4_a_topic_made_again_meanwhile_is_read_from_its_start(stage):
    """Places of the old one say nothing about the new."""
    host = stage.host(stage.on_kafka()).start()
    stage.produce("kafka", count=500)
    stage.drain(host)
    assert host.stop() == 0
    make_again(stage, stage.rng.choice((100, 1500)))
    host.start()
    stage.drain(host)
    stage.check_both(0)
    assert host.stop() == 0


def test_B4_a_topic_made_again_under_a_running_host_is_never_a_silent_jump(stage):
    """It is known by its id, and read from its start: nothing at the old place."""
    host = stage.host(stage.on_kafka()).start()
    stage.produce("kafka", count=500)
    stage.drain(host)
    # It does not see the moment without a topic: what there is to see is the new one.
    host.process.send_signal(signal.SIGSTOP)
    try:
        make_again(stage, stage.rng.choice((100, 1500)))
        stage.hold(0.5)
    finally:
        host.process.send_signal(signal.SIGCONT)
    stage.drain(host)
    assert host.log_lines("topic was deleted and made anew: read from its start")
    stage.check_both(stage.journal.count())
    assert host.stop() == 0


def delete_records(stage, before):
    """Retention takes everything below these places."""
    wish = stage.folder / "delete.json"
    wish.write_text(json.dumps({"version": 1, "partitions": [
        {"topic": stage.topic, "partition": p, "offset": at} for p, at in before.items()]}))
    stage.topics.kafka.run_tool("org.apache.kafka.tools.DeleteRecordsCommand",
                                "--offset-json-file", wish)


def test_B5_what_was_to_be_read_is_gone(stage):
    host = stage.host(stage.on_kafka()).start()
    stage.produce("kafka", count=1000)
    stage.drain(host)
    assert host.stop() == 0
    stage.produce("kafka", count=1000, first_key=1000).wait()
    ends = stage.topics.ends(stage.topic)
    delete_records(stage, {p: end - 5 for p, end in ends.items()})
    stage.fault()
    before = stage.count()
    host.start()
    host.wait(lambda: host.ask("/readyz").status == 503 and host.log_lines("partition stopped"),
              30, "the alarm")
    assert stage.count() == before, "went on without a word from the operator"
    for partition in ends:
        host.cli("sources", "move", f"{stage.topic}/{partition}", "--to", "earliest",
                 "--reason", "retention was faster", "--url", host.url)
    host.wait(lambda: stage.count_of("tx") == before + 5 * PARTITIONS, 30, "goes on")


class Guest(threading.Thread):
    """Joins the group and leaves it, again and again; takes and commits nothing."""

    def __init__(self, stage, pause):
        super().__init__(daemon=True)
        self.stage, self.pause, self.visits, self.over = stage, pause, 0, threading.Event()

    def run(self):
        while not self.over.is_set():
            consumer = self.stage.topics.consumer(
                group_id=self.stage.topics.prefix, session_timeout_ms=6000,
                partition_assignment_strategy="range,roundrobin")
            consumer.subscribe([self.stage.topic])
            until = time.monotonic() + self.pause
            while time.monotonic() < until and not self.over.is_set():
                consumer.poll(0.1)
            consumer.close()
            self.visits += 1
            self.over.wait(self.pause)


def test_B6_a_member_joins_and_leaves_all_the_time(stage):
    seconds, rate = stage.sized(20, 600), stage.sized(300, 1000)
    host = stage.host(stage.on_kafka(**narrow(workers={"count": 2}))).start()
    stage.produce("kafka", rate=rate)
    stage.progress(host)
    guest = Guest(stage, 2)
    begun, done = stage.journal.count(), stage.count_of("tx")
    guest.start()
    stage.hold(seconds)
    written, done = stage.journal.count() - begun, stage.count_of("tx") - done
    guest.over.set()
    guest.join(30)
    rebalances = int(host.metric("moontide_kafka_rebalances_total"))
    stage.fault(rebalances)
    assert guest.visits >= seconds / 5 and rebalances >= guest.visits
    assert done >= written / 2, f"{done} of {written}"
    stage.drain(host)
    stage.check_both(rebalances * WINDOW)
    assert host.stop() == 0


CUTS = {
    "reset": lambda proxy: proxy.reset(),
    "latency": lambda proxy: setattr(proxy, "latency", 0.5),
    "slices": lambda proxy: setattr(proxy, "slices", 64),
    "narrow": lambda proxy: setattr(proxy, "bandwidth", 100_000),
    "black hole": lambda proxy: proxy.black_hole(),
    "down": lambda proxy: proxy.down(),
}


def test_B7_the_way_to_the_broker_is_bad(stage, kafka_proxy):
    host = stage.host(stage.on_kafka(bootstrap=f"127.0.0.1:{kafka_proxy.port}",
                                     rdkafka={"socket.timeout.ms": 5000})).start()
    stage.produce("kafka", rate=300)
    stage.progress(host)
    before_kib = host.rss_kib(host.process.pid)
    for name in stage.rng.sample(list(CUTS), len(CUTS)):
        CUTS[name](kafka_proxy)
        stage.fault()
        stage.hold(stage.sized(4, 120))
        assert host.rss_kib(host.process.pid) < before_kib + 64 * 1024, name
        if name == "down":
            kafka_proxy.up()
        kafka_proxy.heal()
        number = stage.journal.count()
        with stage.recovery(30, name):
            host.wait(lambda: stage.count_of("tx") >= number, 60 * SLOWER, f"after {name}")
    stage.drain(host)
    stage.check_both(stage.journal.count())
    assert kafka_proxy.bytes > 0
    assert host.stop() == 0
