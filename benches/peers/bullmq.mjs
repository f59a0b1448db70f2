// Warms entries as a program with BullMQ does: a job an entry, so many at once.
// Arguments: the upstream's URL, Redis's port, entries, concurrency. Prints the seconds of CPU that it took.

import { Queue, Worker } from "bullmq";
import { Redis } from "ioredis";

const [upstream, port, entries, concurrency] = process.argv.slice(2);
const connection = { host: "127.0.0.1", port: Number(port), maxRetriesPerRequest: null };
const redis = new Redis(connection);
const queue = new Queue("entry", { connection });
const options = { removeOnComplete: true, removeOnFail: true };
for (let from = 0; from < Number(entries); from += 1000) {
  const ids = Array.from({ length: Math.min(1000, entries - from) }, (_, n) => from + n);
  await queue.addBulk(ids.map((id) => ({ name: "warm", data: { id }, opts: options })));
}
let left = Number(entries);
await new Promise((done, fail) => {
  const warm = async ({ data }) => {
    const answer = await fetch(`${upstream}/entries/${data.id}`);
    const body = await answer.text();
    JSON.parse(body);
    await redis.set(`entry:${data.id}`, body, "EX", 3600);
  };
  const worker = new Worker("entry", warm, { connection, concurrency: Number(concurrency) });
  worker.on("completed", () => {
    left -= 1;
    if (left === 0) done();
  });
  worker.on("failed", (job, error) => fail(error));
});
const { user, system } = process.cpuUsage();
console.log((user + system) / 1e6);
process.exit(0);
