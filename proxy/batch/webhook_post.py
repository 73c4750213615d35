"""One POST to a webhook's receiver: over TLS where its URL says so, whole within its time, no redirect followed.

The gateway's own client has no TLS and knows engines only, and httpx is no part of a gateway; what is needed here is a
head, a body and a status line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

TIMEOUT_S = 20.0
"""For all of it: Standard Webhooks advises 15 to 30."""
HEAD_BYTES = 16 * 1024
PORTS = {"http": 80, "https": 443}


class NotDelivered(Exception):
    """`status` is None where there was no answer. The message names no path or query: they may hold a secret."""

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Destination:
    """target   path and query, as it stands in the request's first line"""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def destination_of(url: str) -> Destination:
    """Raises `ValueError` that says what was expected."""
    expected = "expected an address such as https://hooks.example.org/batches, without a user in it"
    if not (url.isascii() and url.isprintable()) or " " in url or len(url) > 2000:
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if parts.scheme not in PORTS or not parts.hostname or port == 0 or "@" in parts.netloc or parts.fragment:
        raise ValueError(expected)
    if "%" in parts.hostname or "\\" in url:
        raise ValueError(expected)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Destination(parts.scheme, parts.hostname, port or PORTS[parts.scheme], target)


def is_public(address: str) -> bool:
    """Whether an IP address can be anybody's: none of this machine's, of a private network, of a link, or reserved."""
    known = ipaddress.ip_address(address)
    if isinstance(known, ipaddress.IPv6Address):
        inside = known.ipv4_mapped or known.sixtofour or (known.teredo[1] if known.teredo else None)
        if inside is not None and not inside.is_global:
            return False
        if known in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(known) & 0xFFFFFFFF)))
    return known.is_global and not known.is_multicast


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


async def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    private: bool,
    tls: ssl.SSLContext | None = None,
    timeout_s: float = TIMEOUT_S,
) -> int:
    """The status of a delivery that was taken: any 2xx.

    private   the receiver may be at an address that is not public
    tls       for receivers with certificates of their own; by default what this machine trusts

    Raises `NotDelivered`.
    """
    to = destination_of(url)
    try:
        async with asyncio.timeout(timeout_s):
            address = await _address(to, private=private)
            status, retry_after_s = await _exchange(to, address, headers, body, tls)
    except TimeoutError:
        raise NotDelivered(f"no answer within {timeout_s:g} s") from None
    except ssl.SSLError as error:
        raise NotDelivered(f"TLS: {error.reason or type(error).__name__}") from None
    except OSError as error:
        raise NotDelivered(error.strerror or type(error).__name__) from None
    if not 200 <= status < 300:
        raise NotDelivered(f"answered with status {status}", status, retry_after_s)
    return status


async def _address(to: Destination, *, private: bool) -> str:
    """An address of the receiver. It is the one that is connected to: a name could mean another the next time.

    Raises `NotDelivered`, `OSError`."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]).partition("%")[0] for one in found]
    allowed = [address for address in addresses if private or is_public(address)]
    if not allowed:
        raise NotDelivered("its address is not a public one")
    return allowed[0]


async def _exchange(
    to: Destination, address: str, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext | None
) -> tuple[int, float | None]:
    if to.scheme == "https":
        context = tls or ssl.create_default_context()
        reader, writer = await asyncio.open_connection(
            address, to.port, limit=HEAD_BYTES, ssl=context, server_hostname=to.host
        )
    else:
        reader, writer = await asyncio.open_connection(address, to.port, limit=HEAD_BYTES)
    try:
        fields = {"host": to.host_header, **headers, "content-length": str(len(body)), "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"POST {to.target} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body)
        with contextlib.suppress(ConnectionError):  # who answers before it has read all may close already
            await writer.drain()
        return await _status(reader)
    finally:
        writer.transport.abort()  # nothing that comes after the head is of interest


async def _status(reader: asyncio.StreamReader) -> tuple[int, float | None]:
    """Of the final answer, and its `retry-after` in seconds. Raises `NotDelivered`, `OSError`."""
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise NotDelivered("its answer is not HTTP") from None
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (len(code) == 3 and code.isascii() and code.isdigit()):
            raise NotDelivered("its answer is not HTTP")
        if not code.startswith("1"):
            return int(code), _retry_after_s(lines)


def _retry_after_s(lines: list[str]) -> float | None:
    for line in lines:
        name, _, value = line.partition(":")
        value = value.strip()
        if name.lower() == "retry-after" and value.isascii() and value.isdigit() and len(value) < 10:
            return float(value)
    return None
