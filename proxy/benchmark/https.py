"""The way to https:// addresses, by httpx: the gateway's own client has no TLS.

It costs more CPU a chunk, and all of it is in the latencies: compare an https target with another one only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx

from backends.errors import ConnectFailed, Disconnected, EngineTimeout, TransportError

from .targets import Place


def translated(error: httpx.HTTPError) -> TransportError:
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout():
            return ConnectFailed("The server cannot be reached.", detail=str(error))
        case httpx.TimeoutException():
            return EngineTimeout("The server did not answer in time.", phase="idle")
    return Disconnected("The server closed the connection.", received=False)


class TlsAnswer:
    def __init__(self, client: TlsClient, response: httpx.Response) -> None:
        self.status = response.status_code
        self._client = client
        self._response = response
        self._body: AsyncIterator[bytes] = response.aiter_bytes()
        self._ended = False

    async def next(self) -> bytes:
        try:
            async for data in self._body:
                if data:
                    return data
        except httpx.HTTPError as error:
            raise translated(error) from None
        self._ended = True
        await self._response.aclose()
        return b""

    async def read(self) -> bytes:
        parts = []
        while data := await self.next():
            parts.append(data)
        return b"".join(parts)

    def close(self) -> None:
        if not self._ended:
            self._client.left_open.append(self._response)


class TlsClient:
    """left_open   answers that were not read to their end; closed by the next request, since closing them waits"""

    def __init__(self, place: Place, timeout_s: float) -> None:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {place.key}"} if place.key else {})
        self._client = httpx.AsyncClient(
            base_url=place.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self.left_open: list[httpx.Response] = []

    async def send(self, method: str, path: str, body: bytes) -> TlsAnswer:
        await self._close_left()
        request = self._client.build_request(method, path, content=body)
        try:
            return TlsAnswer(self, await self._client.send(request, stream=True))
        except httpx.HTTPError as error:
            raise translated(error) from None

    async def aclose(self) -> None:
        await self._close_left()
        await self._client.aclose()

    async def _close_left(self) -> None:
        while self.left_open:
            await self.left_open.pop().aclose()
