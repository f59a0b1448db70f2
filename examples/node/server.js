// An API in Node with a Redis cache that Samovar keeps warm.
//
//     curl 'http://127.0.0.1:8000/artworks/Mona%20Lisa'
//
// Reading is a plain GET, and on a miss the API asks the museum and has Samovar warm the key. Once a second it reports
// hits and misses, so that `samovar jobs` shows the hit rate. Without Redis it asks the museum.
"use strict";

const { createServer } = require("node:http");
const { createClient } = require("redis");

const MUSEUM = process.env.MUSEUM_URL || "http://127.0.0.1:8080";
const REDIS_URL = process.env.REDIS_URL || "redis://127.0.0.1:6379/0";
// Pub/sub reaches all databases of a server, so each database except 0 has its own channels.
const database = Number(new URL(REDIS_URL).pathname.slice(1));
const CHANNEL = process.env.SAMOVAR_CHANNEL || (database ? `samovar:db${database}:invalidate` : "samovar:invalidate");
// The job's sums of what readers found; the braces are part of the key. They expire three days after the last report.
const REPORTED = "samovar:reported:{artwork_info}";
const KEPT = 72 * 3600;

// A cache that is unavailable must not delay requests: commands fail at once while there is no connection, and a
// connection without an answer to PING ends.
const redis = createClient({
  url: REDIS_URL,
  disableOfflineQueue: true,
  commandsQueueMaxLength: 10_000,
  pingInterval: 1000,
  socket: { connectTimeout: 500, socketTimeout: 2500, reconnectStrategy: () => 500 },
});
redis.on("error", () => {}); // It reconnects by itself.
redis.connect().catch(() => {});

// Bounds the wait for an answer; the client's own timeout ends once a command is sent.
function soon(answer) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error("Redis does not answer")), 500);
  });
  return Promise.race([answer, late]).finally(() => clearTimeout(timer));
}

let found = { hits: 0, misses: 0 };

// Reports what readers found since the last report, hits and misses at once. What Redis does not take is dropped: sent
// again, it could count twice.
async function report() {
  const sums = Object.entries(found).filter(([, count]) => count > 0);
  found = { hits: 0, misses: 0 };
  if (sums.length === 0) return;
  const add = redis.multi();
  for (const [field, count] of sums) add.hIncrBy(REPORTED, field, count);
  try {
    await soon(add.expire(REPORTED, KEPT).exec());
  } catch (error) {
    console.error(`reads are not reported: ${error.message}`);
  }
}
setInterval(report, 1000);

// Returns the cached value; on a miss, asks Samovar to warm it for later requests.
async function warmValue(key) {
  try {
    const cached = await soon(redis.get(key));
    found[cached === null ? "misses" : "hits"] += 1;
    if (cached === null) await soon(redis.publish(CHANNEL, JSON.stringify({ keys: [key], action: "warm" })));
    return cached;
  } catch {
    return null;
  }
}

async function artwork(name) {
  const cached = await warmValue(`artwork_info:${name}`);
  if (cached !== null) return [200, cached, "hit"];
  const answer = await fetch(`${MUSEUM}/artworks/${encodeURIComponent(name)}`);
  if (!answer.ok) return [answer.status === 404 || answer.status === 410 ? 404 : 502, "{}", "miss"];
  return [200, JSON.stringify((await answer.json()).data), "miss"];
}

const server = createServer(async (request, response) => {
  const name = /^\/artworks\/(.+)$/.exec(request.url.split("?")[0])?.[1];
  let answer = [404, "{}", "miss"];
  try {
    if (name && request.method === "GET") answer = await artwork(decodeURIComponent(name));
  } catch {
    answer = [502, "{}", "miss"];
  }
  const [status, body, cache] = answer;
  response.writeHead(status, { "Content-Type": "application/json", "X-Cache": cache }).end(body);
});
server.listen(Number(process.env.PORT ?? 8000), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
process.on("SIGTERM", async () => {
  server.close();
  await report();
  process.exit(0);
});
