"""Peers that vanish: the kernel's probes are asked for on both sides, and end the streams of a node that is gone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from backends import liveness
from backends.errors import Disconnected
from backends.liveness import CLIENT, ENGINE, Probes
from backends.transport import Pool, Timeouts
from proxy.server import listen
from tests.fakes.faulty_servers import StallsMidStream

Options = Callable[[int, int], int]


def probes_of(getsockopt: Options) -> Probes | None:
    """As the kernel has them."""
    if not getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    after, every, most, unsent_ms = (
        getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
    )
    return Probes(after, every, most, unsent_ms // 1000 or None)


@pytest.mark.parametrize("listeners", [1, 2])
def test_clients_are_probed_on_whichever_socket_they_come(listeners: int) -> None:
    listening = listen("127.0.0.1", 0, listeners)
    try:
        for one in listening:
            assert probes_of(one.getsockopt) == CLIENT
        with socket.create_connection(listening[0].getsockname()):
            for one in listening:
                one.setblocking(False)
            accepted = next(found for one in listening if (found := accepted_by(one)) is not None)
            with accepted:
                assert probes_of(accepted.getsockopt) == CLIENT
    finally:
        for one in listening:
            one.close()


def accepted_by(listener: socket.socket) -> socket.socket | None:
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


async def test_engines_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[liveness.Socket, Probes]] = []
    whole = liveness.probe

    def probe(connection: liveness.Socket, probes: Probes) -> None:
        whole(connection, probes)
        asked.append((connection, probes))

    monkeypatch.setattr(liveness, "probe", probe)
    async with StallsMidStream() as server:
        response = await Pool(server.host, server.port).request(b"GET", b"/", b"", b"")
        [(connection, probes)] = asked
        assert probes == ENGINE == probes_of(connection.getsockopt)  # type: ignore[attr-defined]
        response.close()


@contextmanager
def silenced(port: int) -> Iterator[None]:
    """Nothing that is sent from that port arrives, as of a node without power."""
    rule = ["OUTPUT", "-o", "lo", "-p", "tcp", "--sport", str(port), "-j", "DROP"]
    subprocess.run(["iptables", "-w", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-w", "-D", *rule], check=True)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("iptables") is None, reason="takes root and iptables")
async def test_a_stream_of_a_node_that_is_gone_ends_soon_and_a_silent_engines_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(liveness, "ENGINE", Probes(1, 1, 1))
    async with StallsMidStream() as alive, StallsMidStream() as gone:
        timeouts = Timeouts(idle_s=30.0)
        waits = await Pool(alive.host, alive.port, timeouts=timeouts).request(b"GET", b"/", b"", b"")
        ends = await Pool(gone.host, gone.port, timeouts=timeouts).request(b"GET", b"/", b"", b"")
        assert await waits.next()
        assert await ends.next()
        with silenced(gone.port), pytest.raises(Disconnected) as caught:
            await ends.next()
        assert "timed out" in str(caught.value.detail)
        assert waits.error is None
        assert waits.connection is not None, "its kernel has answered"
        waits.close()
