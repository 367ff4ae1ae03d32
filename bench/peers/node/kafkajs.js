// kafkajs.js BROKERS TOPIC GROUP EVENTS: a member of a group that takes batches,
// decodes them by JSON.parse and commits now and then.
//
// Its fast settings: whole batches (eachBatch) instead of single messages, all
// partitions at once, fetches of up to 8 MiB a partition, no commit for each batch.
import kafkajs from "kafkajs";

import { Run, read } from "./work.js";

const COMMIT_EVERY = 200_000; // events

const [brokers, topic, groupId, count] = process.argv.slice(2);
const events = Number(count);
const run = new Run();
let committed = 0;

const kafka = new kafkajs.Kafka({
  clientId: "peer",
  brokers: brokers.split(","),
  logLevel: kafkajs.logLevel.ERROR,
});
const consumer = kafka.consumer({
  groupId,
  maxWaitTimeInMs: 100,
  maxBytesPerPartition: 8 << 20,
  maxBytes: 32 << 20,
});

async function finish() {
  run.print();
  await consumer.disconnect();
}

await consumer.connect();
await consumer.subscribe({ topic, fromBeginning: true });
await consumer.run({
  autoCommit: false,
  partitionsConsumedConcurrently: 8,
  eachBatch: async ({ batch, resolveOffset, uncommittedOffsets, commitOffsetsIfNecessary }) => {
    run.begin();
    for (const message of batch.messages) {
      const event = JSON.parse(message.value);
      read(event.eventType, event.payload);
    }
    run.handled += batch.messages.length;
    resolveOffset(batch.lastOffset());
    if (run.handled - committed >= COMMIT_EVERY || run.handled >= events) {
      committed = run.handled;
      await commitOffsetsIfNecessary(uncommittedOffsets());
    }
    if (committed >= events) {
      setImmediate(finish);
    }
  },
});
