"""An API with a Redis cache that Samovar keeps warm.

    curl 'http://127.0.0.1:8000/artworks/Mona%20Lisa'
    curl -X POST 'http://127.0.0.1:8000/artworks/Mona%20Lisa/changed'

Reading is a plain GET. A value is complete JSON, and the API returns it unchanged. The API never writes to the cache
itself, so it cannot restore an old value just after an invalidation. Without Redis it asks the museum. Once a second it
reports hits and misses, so that `samovar jobs` shows the hit rate.
"""

import asyncio
import json
import logging
import os
from collections import Counter
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
from fastapi import FastAPI, HTTPException, Response
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

REDIS_URL = os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"


def client(retries: int) -> Redis:
    """Returns a client with a bound: a cache that is unavailable must not delay requests."""
    retry = Retry(NoBackoff(), retries)
    return Redis.from_url(REDIS_URL, socket_timeout=0.5, socket_connect_timeout=0.5, retry=retry)


# A read is tried again on a new connection. A report is not: sent again, it could count twice.
redis, reporter = client(1), client(0)
# Pub/sub reaches all databases of a server, so each database except 0 has its own channels.
database = redis.connection_pool.connection_kwargs.get("db") or 0
DEFAULT_CHANNEL = f"samovar:db{database}:invalidate" if database else "samovar:invalidate"
CHANNEL = os.environ.get("SAMOVAR_CHANNEL") or DEFAULT_CHANNEL
log = logging.getLogger("uvicorn.error")
museum = httpx.AsyncClient(base_url=os.environ.get("MUSEUM_URL") or "http://127.0.0.1:8080", timeout=10)


# The job's sums of what readers found; the braces are part of the key. They expire three days after the last report.
REPORTED, KEPT = "samovar:reported:{artwork_info}", 72 * 3600
found: Counter[str] = Counter()


async def report_reads() -> None:
    """Reports what readers found since the last report, at once. What Redis does not take is dropped."""
    sums = dict(found)
    found.clear()
    if not sums:
        return
    report = reporter.pipeline(transaction=True)
    for field, count in sums.items():
        report.hincrby(REPORTED, field, count)
    try:
        await report.expire(REPORTED, KEPT).execute()
    except RedisError as error:
        log.warning("%s reads are not reported: %s", sum(sums.values()), error)


async def reports() -> None:
    while True:
        await asyncio.sleep(1)
        await report_reads()


@asynccontextmanager
async def lifespan(_: FastAPI):
    reporting = asyncio.create_task(reports())
    yield
    reporting.cancel()
    await report_reads()
    await museum.aclose()
    await redis.aclose()
    await reporter.aclose()


app = FastAPI(lifespan=lifespan)


async def warm_value(key: str) -> bytes | None:
    """Returns the cached value; on a miss, asks Samovar to warm it for later requests."""
    try:
        cached = await redis.get(key)
        found["misses" if cached is None else "hits"] += 1
        if cached is None:
            await redis.publish(CHANNEL, json.dumps({"keys": [key], "action": "warm"}))
        return cached
    except RedisError:
        return None


@app.get("/artworks/{name:path}")
async def artwork(name: str) -> Response:
    cached = await warm_value(f"artwork_info:{name}")
    if cached is not None:
        return Response(cached, media_type="application/json", headers={"X-Cache": "hit"})
    answer = await museum.get(f"/artworks/{quote(name, safe='')}")
    if answer.status_code != 200:
        code = 404 if answer.status_code in (404, 410) else 502
        raise HTTPException(code, f"the museum answered {answer.status_code}")
    return Response(json.dumps(answer.json()["data"]), media_type="application/json", headers={"X-Cache": "miss"})


@app.post("/artworks/{name:path}/changed", status_code=202)
async def changed(name: str) -> dict[str, int]:
    """Publishes an editor's change; the old value is served until the new one lands."""
    try:
        return {"workers": await redis.publish(CHANNEL, f"artwork_info:{name}")}
    except RedisError as error:
        raise HTTPException(503, "the change was not published; try again") from error
