// pgboss.js URL QUEUE EVENTS|init: workers of pg-boss on its own queue, which
// parses the jobs' JSON; with `init` it makes its tables and the queue only.
//
// Its fast settings: 1,000 jobs a fetch and the next one at once while they come
// back full (burstWhenBatchFull); two workers, so that PostgreSQL does not wait
// for us; a table of its own for the queue (partition); no order by creation;
// neither supervision nor schedules beside the work.
import { PgBoss } from "pg-boss";

import { Run, read } from "./work.js";

const [url, queue, count] = process.argv.slice(2);
const run = new Run();
const boss = new PgBoss({ connectionString: url, supervise: false, schedule: false });

async function handle(jobs) {
  run.begin();
  for (const { data } of jobs) {
    read(data.type, data.payload);
  }
  run.handled += jobs.length;
  if (run.handled >= Number(count)) {
    setImmediate(finish);
  }
}

// offWork() returns when the workers have completed their jobs.
async function finish() {
  await boss.offWork(queue);
  run.print();
  await boss.stop();
}

boss.on("error", (error) => {
  console.error(error);
  process.exit(1);
});
await boss.start();
if (count === "init") {
  await boss.createQueue(queue, { partition: true });
  await boss.stop();
} else {
  await boss.work(queue, {
    batchSize: 1000,
    burstWhenBatchFull: true,
    orderByCreatedOn: false,
    localConcurrency: 2,
    pollingIntervalSeconds: 0.5,
  }, handle);
}
