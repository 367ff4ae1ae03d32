import json, time
from scenes import *
from test_kafka import on_kafka
def test_zz(database, topics, make_host):
    rng=make_rng("zz"); number=20000
    make_seen(database)
    topic = topics.create("events", 8)
    events = [shop_event(rng, i, keys=701) for i in range(number)]
    topics.produce(topic, ((key, json.dumps(body), None) for _, key, _, body in events))
    print("ENDS", topics.ends(topic))
    host = make_host(settings=on_kafka(topics, topic, database={"url": database.url}, outbox={"enabled":"off"}), handlers={"recorder": batch_recorder('"*"')})
    host.start()
    wait_count(host, database, number)
    ends_and_lag_are_reached(host, topics, topic, topics.prefix)
    host.kill()
    print(database.query("select partition, seq, gaps::text from event_handler_positions"))
    host.start()
    t=time.time()
    while time.time()-t<6:
        time.sleep(0.3)
        s=host.ask("/v1/status").json()
        if any("source" in r for r in s["reasons"]): break
    print(s["reasons"], [(p["partition"][-2:],p["next"]) for p in s["sources"]["partitions"]])
    print("ENDS", topics.ends(topic))
    assert not [r for r in s["reasons"] if "source" in r]
