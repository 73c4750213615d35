"""Whether an engine answers at all, where requests to it have come to nothing; and whether it is ours.

All engines here answer `GET /health` while they work; any answer will do, since this is not about what they can do but
about whether somebody is there. One that is stopped, stuck or cut off does not answer, though its kernel may go on
taking connections for it.

Nobody needs a key for that. So before a replica gets requests again, the engine is also asked by its key for a route
that no request without it may have. It is a GET where a POST belongs: our engine says 404 or 405 in its own way and
does no work, another one says 401, a web server redirects or has a page.

    tgi        the key's layer is round these routes, method and all; /health, /info, /v1/models have none
    vllm       /v1 and below; /health has none
    sglang     all but /health and /metrics
    llamacpp   all but /health, /models, /v1/models and the pages
    tei        all of its own routes, of which it has only those for vectors
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from .base import Endpoint
from .engine_errors import is_strangers, no_engine, not_the_engine
from .errors import MalformedResponse, NotTheEngine, TransportError
from .transport import Pool, Timeouts

PATIENCE_S = 2.5

Health = Callable[[Endpoint], Awaitable[bool]]
"""Whether an engine is well. Raises `NotTheEngine` where somebody else answers."""

_GUARDED = {"tei": b"/v1/embeddings"}
_USUALLY_GUARDED = b"/v1/chat/completions"


def is_ours(engine: str) -> Health:
    """For an engine of that family: whether it answers within `PATIENCE_S`, by its key. Raises `NotTheEngine`."""
    guarded = _GUARDED.get(engine, _USUALLY_GUARDED)

    async def ours(endpoint: Endpoint) -> bool:
        return await _asked(endpoint, (b"/health", guarded), PATIENCE_S, any_answer=False)

    return ours


async def answers(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> bool:
    """Whether anybody answers within that time."""
    return await _asked(endpoint, (b"/health",), patience_s, any_answer=True)


async def _asked(endpoint: Endpoint, routes: Sequence[bytes], patience_s: float, *, any_answer: bool) -> bool:
    timeouts = Timeouts(patience_s, patience_s, patience_s)
    pool = Pool(endpoint.host, endpoint.port, timeouts=timeouts)
    headers = b"authorization: Bearer %s\r\n" % endpoint.api_key.encode() if endpoint.api_key else b""
    try:
        async with asyncio.timeout(patience_s):
            for route in routes:
                response = await pool.request(b"GET", route, headers)
                response.close()
                if not any_answer and is_strangers(response.status, response.content_type):
                    raise not_the_engine(response.status)
            return True
    except NotTheEngine:
        raise
    except MalformedResponse as garbled:
        if any_answer:
            return False
        raise no_engine(garbled.detail) from None
    except (TimeoutError, TransportError):
        return False
    finally:
        pool.close_idle()
