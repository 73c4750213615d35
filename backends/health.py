"""Whether an engine answers at all, where requests to it have come to nothing.

All engines here answer `GET /health` while they work; any answer will do, since this is not about what they can do but
about whether somebody is there. One that is stopped, stuck or cut off does not answer, though its kernel may go on
taking connections for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .base import Endpoint
from .errors import TransportError
from .transport import Pool, Timeouts

PATIENCE_S = 2.5

Health = Callable[[Endpoint], Awaitable[bool]]


async def answers(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> bool:
    """Whether the engine answers within that time."""
    timeouts = Timeouts(patience_s, patience_s, patience_s)
    pool = Pool(endpoint.host, endpoint.port, timeouts=timeouts)
    headers = b"authorization: Bearer %s\r\n" % endpoint.api_key.encode() if endpoint.api_key else b""
    try:
        async with asyncio.timeout(patience_s):
            response = await pool.request(b"GET", b"/health", headers)
            response.close()
            return True
    except (TimeoutError, TransportError):
        return False
    finally:
        pool.close_idle()
