"""Several sockets on one port, which nobody else takes part in."""

from __future__ import annotations

import socket

import pytest

from proxy.workers.sockets import listen


def test_connections_to_one_port_reach_every_socket() -> None:
    listeners = listen("127.0.0.1", 0, 3)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    clients = [socket.create_connection(("127.0.0.1", *ports)) for _ in range(100)]
    taken = []
    for listener in listeners:
        count = 0
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            count += 1
        taken.append(count)
    assert sum(taken) == 100
    assert all(taken)
    for one in (*clients, *listeners):
        one.close()


def test_a_port_on_which_another_gateway_shares_its_sockets_is_not_joined() -> None:
    first = listen("127.0.0.1", 0, 2)
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", first[0].getsockname()[1], 2)
    for one in first:
        one.close()


def test_the_port_is_free_as_soon_as_its_sockets_are_closed() -> None:
    first = listen("127.0.0.1", 0, 2)
    port = first[0].getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    for one in first:
        one.close()
    second = listen("127.0.0.1", port, 2)
    for one in (client, *second):
        one.close()
