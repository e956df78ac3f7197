"""OpenAI's own client, which asks for base64 by itself and knows the errors by their status."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

from given import EMBEDDING, GIVEN, KEY, MULTIMODAL, PICTURE, QUERY, TEXTS, URL, WRONG_KEY, report
from openai import AsyncOpenAI, OpenAI, RateLimitError

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY)
LIMITED = f"{GIVEN['limited_url']}/v1"  # the same service with a low RATE_LIMIT
MANY = 100  # more than that limit


def vectors(given: Any = TEXTS, *, model: str = EMBEDDING, asked: OpenAI = client, **options: Any) -> Any:
    answer = asked.embeddings.create(model=model, input=given, **options)
    return [item.embedding for item in answer.data]


async def vectors_later() -> Any:
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY) as later:
        answer = await later.embeddings.create(model=EMBEDDING, input=TEXTS)
    return [item.embedding for item in answer.data]


def encoding_asked_for() -> Any:
    raw = client.embeddings.with_raw_response.create(model=EMBEDDING, input=TEXTS)
    return json.loads(raw.http_request.content)["encoding_format"]


def too_often() -> None:
    hasty = OpenAI(base_url=LIMITED, api_key=KEY, max_retries=0)
    for _ in range(MANY):
        vectors(QUERY, asked=hasty)


def after_a_wait() -> Any:
    """One retry, after less than a second where the client chooses, is too early; Retry-After is not."""
    try:
        too_often()
    except RateLimitError:
        patient = OpenAI(base_url=LIMITED, api_key=KEY, max_retries=1)
        raw = patient.embeddings.with_raw_response.create(model=EMBEDDING, input=QUERY)
        return {"retries": raw.retries_taken, "vector": raw.parse().data[0].embedding}


def wrong_key() -> Any:
    return vectors(asked=OpenAI(base_url=f"{URL}/v1", api_key=WRONG_KEY))


picture = f"data:image/png;base64,{base64.b64encode(Path(PICTURE).read_bytes()).decode()}"
report(
    {
        "texts": vectors,
        "texts, as floats": lambda: vectors(encoding_format="float"),
        "texts, async": lambda: asyncio.run(vectors_later()),
        "query": lambda: vectors(QUERY)[0],
        "query with its task": lambda: vectors(QUERY, extra_body={"task": "retrieval.query"})[0],
        "short": lambda: vectors(dimensions=16),
        "picture": lambda: vectors([picture], model=MULTIMODAL)[0],
        "models": lambda: sorted(model.id for model in client.models.list()),
        "encoding asked for": encoding_asked_for,
        "wrong key": wrong_key,
        "unknown model": lambda: vectors(model="nope"),
        "wrong task": lambda: vectors(extra_body={"task": "nope"}),
        "nothing": lambda: vectors([]),
        "token ids": lambda: vectors([[1, 2]]),
        "too often": too_often,
        "after a wait": after_a_wait,
    }
)
