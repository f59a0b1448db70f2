"""An API with a Redis cache that Samovar keeps warm.

    curl 'http://127.0.0.1:8000/artworks/Mona%20Lisa'
    curl -X POST 'http://127.0.0.1:8000/artworks/Mona%20Lisa/changed'

Reading is a plain GET: what is there is JSON, whole and fresh. This API never writes to the cache itself; so it cannot
put an old value there just after an invalidation.
"""

import json
import os
from contextlib import asynccontextmanager
from urllib.parse import quote

import httpx
from fastapi import FastAPI, HTTPException, Response
from redis.asyncio import Redis

CHANNEL = os.environ.get("SAMOVAR_CHANNEL") or "samovar:invalidate"

redis = Redis.from_url(os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0")
museum = httpx.AsyncClient(base_url=os.environ.get("MUSEUM_URL") or "http://127.0.0.1:8080", timeout=10)


@asynccontextmanager
async def lifespan(_: FastAPI):
    yield
    await museum.aclose()
    await redis.aclose()


app = FastAPI(lifespan=lifespan)


@app.get("/artworks/{name:path}")
async def artwork(name: str) -> Response:
    key = f"artwork_info:{name}"
    cached = await redis.get(key)
    if cached is not None:
        return Response(cached, media_type="application/json", headers={"X-Cache": "hit"})
    # A miss: ask Samovar to warm the entry for those who come next, and the museum for this one answer.
    await redis.publish(CHANNEL, json.dumps({"keys": [key], "action": "warm"}))
    answer = await museum.get(f"/artworks/{quote(name, safe='')}")
    if answer.status_code != 200:
        raise HTTPException(404 if answer.status_code in (404, 410) else 502, f"the museum said {answer.status_code}")
    return Response(json.dumps(answer.json()["data"]), media_type="application/json", headers={"X-Cache": "miss"})


@app.post("/artworks/{name:path}/changed", status_code=202)
async def changed(name: str) -> dict[str, int]:
    """What an editor's save does: the old value is served until the new one lands."""
    return {"workers": await redis.publish(CHANNEL, f"artwork_info:{name}")}
