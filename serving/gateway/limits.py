"""Limits of the gateway: sizes, connections and times."""

from fruitstand.contract import Preprocessing

MAX_REQUEST_BYTES = Preprocessing().max_encoded_bytes + (1 << 16)
"""The largest image and its protocol overhead."""
BUFFER_BYTES = MAX_REQUEST_BYTES + (1 << 20)
"""Larger than any request, so that each one can be retried when its replica dies."""
IN_FLIGHT_PER_REPLICA = 128
WEB_IN_FLIGHT = 128
"""Of the HTTP server, which is one Python process; as many more may wait."""
MAX_CONNECTIONS = 4096
MAX_CALL_S = 60
"""Deadline of calls that set none."""
IDLE_S = 60
TRY_SHARE = 0.5
"""Share of the caller's deadline for one try, which leaves time to retry when a replica hangs."""
MIN_TRY_MS = 250
"""Shortest time for one try, so that a call that only waits in a queue is not sent twice."""
