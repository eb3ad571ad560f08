"""Classify images with the blocking client.

    python examples/classify_sync.py HOST:PORT IMAGE...

Needs pip install 'fruitstand[client]'.
"""

import sys

from fruitstand_client import Client

with Client(sys.argv[1], deadline_s=10) as client:
    for answer in client.classify_stream(sys.argv[2:], top_k=3):
        print(answer.path, answer.label, answer.probability, answer.error or "")
