"""Asking whether a server answers, within a bound."""

from __future__ import annotations

import socket
import threading

from medpfl.data.download import unreachable


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fault = unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.3)
    assert fault  # that there is one shows that it was given up: the server is still silent


def test_a_closed_port_is_named_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert "refused" in str(unreachable(f"http://127.0.0.1:{port}", seconds=5)).lower()


def test_a_refusal_is_an_answer():
    def refuse(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1024)
            connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=refuse, args=(server,))
        answering.start()
        fault = unreachable(f"http://127.0.0.1:{server.getsockname()[1]}", seconds=200)
        answering.join()
    assert fault is None
