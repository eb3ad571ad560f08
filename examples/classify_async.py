"""Classify images with the async client.

    python examples/classify_async.py HOST:PORT IMAGE...

Needs pip install 'fruitstand[client]'.
"""

import asyncio
import sys

from fruitstand_client import AsyncClient


async def main() -> None:
    """Ask, and print the answers as they come."""
    async with AsyncClient(sys.argv[1], deadline_s=10) as client:
        async for answer in client.classify_stream(sys.argv[2:], top_k=3):
            print(answer.path, answer.label, answer.probability, answer.error or "")


asyncio.run(main())
