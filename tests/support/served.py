"""A server on loopback that sends a file in pieces, or refuses to."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import threading

from lazynet.datasets import Archive


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves one file; `server.plan` says per request how many bytes to send and whether ranges are understood."""

    def do_GET(self):
        body, (limit, ranges) = (
            self.server.body,
            self.server.plan.pop(0) if self.server.plan else (None, True),
        )
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.path != "/" + self.server.name:
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][:limit])

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serve(body: bytes, plan=()):
    """A server on loopback and the archive record that describes its file truthfully."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.body, server.plan, server.asked, server.name = (
        body,
        list(plan),
        [],
        "cifar-10-binary.tar.gz",
    )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}/{server.name}"
    try:
        yield server, Archive(url, len(body), hashlib.md5(body).hexdigest())
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
