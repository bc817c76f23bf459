"""A storage server on this machine, for buckets: the PyPI package gcp-storage-emulator.

It runs in a thread of the test process, and can be made to answer errors for a while.
"""

import contextlib
import functools
import http.server
import logging
import os
import threading
import urllib.parse
from collections.abc import Iterator
from unittest import mock

from gcp_storage_emulator import server as emulator
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


class _Http(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # connections of the second process were lost with 5


class Server:
    """A running server with one empty bucket."""

    def __init__(self):
        logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
        self.requests = 0
        self.refused = 0
        self.down = False  # answers 503 to everything
        self.lock = threading.Lock()
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        handler = functools.partial(_Handler, self)
        self._http = _Http(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._http.handle_error = lambda *_: None  # a client that goes early
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def names(self) -> list[str]:
        """Of all objects."""
        with self.lock:
            objects = self.storage.get_file_list(BUCKET)[0]
        return sorted(item["name"] for item in objects)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(emulator.RequestHandler):
    def __init__(self, server: Server, *args):
        self._server = server
        super().__init__(server.storage, *args)

    def _answer(self, method: str) -> None:
        self._server.requests += 1
        if self._server.down:
            self._server.refused += 1
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_error(503)
            return
        with self._server.lock:  # the storage is not made for threads
            if self._precondition_holds(method):
                emulator.Router(self).handle(method)
            else:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_error(412)

    def _generation(self, name: str) -> str:
        """Of an object; "0" if there is none, as Google's storage counts."""
        try:
            return self._server.storage.get_file_obj(BUCKET, name)["generation"]
        except NotFound:
            return "0"

    def _precondition_holds(self, method: str) -> bool:
        """Two writers of one object rely on it; the emulator knows none."""
        url = urllib.parse.urlparse(self.path)
        query = urllib.parse.parse_qs(url.query)
        if method == "GET" or "ifGenerationMatch" not in query:
            return True
        name = query.get("name") or [urllib.parse.unquote(url.path.split("/o/")[-1])]
        return self._generation(name[0]) == query["ifGenerationMatch"][0]

    def end_headers(self):
        """With the generation of what is read, which the emulator leaves out."""
        _, object_, name = urllib.parse.urlparse(self.path).path.partition("/o/")
        if self.command == "GET" and object_:
            generation = self._generation(urllib.parse.unquote(name))
            self.send_header("x-goog-generation", generation)
        super().end_headers()

    do_GET = functools.partialmethod(_answer, "GET")
    do_POST = functools.partialmethod(_answer, "POST")
    do_PUT = functools.partialmethod(_answer, "PUT")
    do_DELETE = functools.partialmethod(_answer, "DELETE")
    do_PATCH = functools.partialmethod(_answer, "PATCH")


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that this process and the programs that it starts use for gs://."""
    server = Server()
    with mock.patch.dict(os.environ, STORAGE_EMULATOR_HOST=server.url):
        yield server
    server.close()
