"""confluent.py BROKERS TOPIC GROUP EVENTS: a member of a group that takes batches,
decodes them by orjson and commits now and then.

Its fast settings: consume() of many messages instead of poll(), librdkafka's own
prefetching (100,000 messages or 64 MiB, its defaults), whose fetches come again at
once, and no commit or stored offset for each message.
"""

import json
import resource
import sys
import time

import orjson
from confluent_kafka import Consumer, KafkaException

BATCH = 10_000
COMMIT_EVERY = 200_000  # events


def join(brokers, topic, group):
    consumer = Consumer({
        "bootstrap.servers": brokers,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "fetch.queue.backoff.ms": 1,
    })
    consumer.subscribe([topic])
    return consumer


def handle(messages):
    for message in messages:
        if message.error():
            raise KafkaException(message.error())
        event = orjson.loads(message.value())
        payload = event["payload"]
        if event["eventType"] is None or payload["total"] is None or payload["currency"] is None:
            raise ValueError("a field is missing")


def main():
    brokers, topic, group, events = sys.argv[1:]
    consumer = join(brokers, topic, group)
    handled = committed = 0
    while handled < int(events):
        messages = consumer.consume(BATCH, timeout=0.1)
        if messages and not handled:
            start, cpu = time.perf_counter(), time.process_time()
        handle(messages)
        handled += len(messages)
        if handled - committed >= COMMIT_EVERY or handled >= int(events):
            consumer.commit(asynchronous=handled < int(events))
            committed = handled
    print(json.dumps({
        "events": handled,
        "seconds": time.perf_counter() - start,
        "cpu_us": (time.process_time() - cpu) * 1e6 / handled,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))
    consumer.close()


main()
