"""Both clients as one function, and a server's answers to it: what their tests share."""

import asyncio
from collections.abc import Callable

from fruitstand_client import AsyncClient, Client, Prediction

Classify = Callable[..., list[Prediction]]


def blocking(url: str, sent: list, **settings: object) -> list[Prediction]:
    """Classify with the blocking client."""
    with Client(url, **settings) as client:
        return client.classify(sent, top_k=2)


def awaiting(url: str, sent: list, **settings: object) -> list[Prediction]:
    """Classify with the async client."""

    async def ask() -> list[Prediction]:
        async with AsyncClient(url, **settings) as client:
            return await client.classify(sent, top_k=2)

    return asyncio.run(ask())


def labels(predictions: list[Prediction]) -> list[str | None]:
    """What the server called each image: its length."""
    return [one.label for one in predictions]


def lengths(sent: list[bytes]) -> list[str]:
    """What it should have called them."""
    return [str(len(one)) for one in sent]
