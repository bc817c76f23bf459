"""Whether the other processes of a job are alive: one sentence when one of them dies.

The runtime of JAX finds a dead process by its missing heartbeats, after a while, and
ends the others with a stack trace. A connection between two processes is closed at
once when one of them is killed. So each process keeps one open to process 0.
"""

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from typing import Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from segjax.errors import UserError

_CONNECT_SECONDS = 10
_FAILURE_SECONDS = 3
_GOODBYE = b"."


class Peers:
    """Ends this process, with one sentence, as soon as another one has died.

    Where processes cannot connect to each other, only the heartbeats are left.
    """

    def __init__(self, exit_code: int):
        """All processes of the job must make one at the same time.

        Args:
          exit_code: of this process when another one has died.
        """
        self._exit_code = exit_code
        self._connections: dict[socket.socket, int] = {}
        self._closing = False
        if jax.process_count() == 1:
            return
        with _listener() as server:
            address = _encode(server.getsockname()[1])
            address = multihost_utils.broadcast_one_to_all(address)
            if jax.process_index() == 0:
                self._accept(server, bytes(address[:16]))
            else:
                self._connect(np.asarray(address, np.uint8))
        threading.Thread(target=self._watch, daemon=True).start()

    def _accept(self, server: socket.socket, token: bytes) -> None:
        """Waits for the connections of the other processes."""
        server.settimeout(_CONNECT_SECONDS)
        while len(self._connections) < jax.process_count() - 1:
            try:
                connection, _ = server.accept()
                connection.settimeout(_CONNECT_SECONDS)
                words = connection.recv(20, socket.MSG_WAITALL)
            except OSError:  # those that came are watched
                return
            if len(words) == 20 and words[:16] == token:
                self._connections[connection] = int.from_bytes(words[16:])

    def _connect(self, address: np.ndarray) -> None:
        token, port, hosts = _decode(address)
        for host in hosts:
            try:
                connection = socket.create_connection((host, port), _CONNECT_SECONDS)
                connection.sendall(token + jax.process_index().to_bytes(4))
            except OSError:
                continue
            self._connections[connection] = 0
            return

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection, index in self._connections.items():
                connection.settimeout(None)
                selector.register(connection, selectors.EVENT_READ, index)
            while selector.get_map():
                for key, _ in selector.select():
                    try:
                        word = key.fileobj.recv(1)
                    except OSError:
                        word = b""
                    if word != _GOODBYE and not self._closing:
                        self._end(key.data)
                    selector.unregister(key.fileobj)

    def _end(self, index: int) -> None:
        text = (
            f"error: process {index} of {jax.process_count()} has ended, its own "
            "output says why; start the same command again on all hosts to continue"
        )
        print(f"\n{text}", file=sys.stderr, flush=True)
        os._exit(self._exit_code)  # the others may never answer again

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Says goodbye after a good end, so that it alarms no other process.

        An operation of all processes fails when one of them dies, at about the time at
        which the connection is closed: that is the better explanation.
        """
        if kind is None:
            self._closing = True
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.sendall(_GOODBYE)
        elif self._connections and not issubclass(kind, UserError | KeyboardInterrupt):
            time.sleep(_FAILURE_SECONDS)


def _listener() -> socket.socket:
    """A server on a free port of process 0; elsewhere it is not used."""
    return socket.create_server(("", 0), backlog=jax.process_count())


def _encode(port: int) -> np.ndarray:
    """A secret, the port and the addresses of this host, as bytes of a fixed number."""
    hosts = {"127.0.0.1": None}
    try:
        hosts[socket.gethostbyname(socket.gethostname())] = None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface
            hosts[probe.getsockname()[0]] = None
    except OSError:
        pass
    text = ",".join(reversed(hosts)).encode()[:78].ljust(78)
    return np.frombuffer(os.urandom(16) + port.to_bytes(2) + text, np.uint8)


def _decode(address: np.ndarray) -> tuple[bytes, int, list[str]]:
    data = address.tobytes()
    return data[:16], int.from_bytes(data[16:18]), data[18:].decode().strip().split(",")
