"""What the gateway lets in, and for how long."""

from fruitstand.contract import Preprocessing

MAX_REQUEST_BYTES = Preprocessing().max_encoded_bytes + (1 << 16)
"""The longest image, and the protocol around it."""
BUFFER_BYTES = MAX_REQUEST_BYTES + (1 << 20)
"""Larger than any request that is let in: each can be repeated when its replica dies."""
IN_FLIGHT_PER_REPLICA = 128
MAX_CONNECTIONS = 4096
MAX_CALL_S = 60
"""For callers that name no deadline."""
IDLE_S = 60
TRY_SHARE = 0.5
"""Of the caller's deadline, what one try may take: a replica that hangs leaves time for another."""
MIN_TRY_MS = 250
"""A call that only waits in a queue is not to be asked twice."""
