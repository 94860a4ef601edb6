"""A web server on this machine, whose answers are as good or as bad as a test wants."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


@dataclass(kw_only=True)
class Answer:
    """One answer. After the first `sends` bytes of the body the server closes, or stalls."""

    body: bytes = b""
    status: int = 200
    ranges: bool = True  # answers 206 or 416 to a Range request
    range_size: bool = True  # a 416 says how large the file is
    shift: int = 0  # a 206 begins so many bytes after those asked for
    longest: int | None = None  # a 206 has at most so many bytes
    length: bool = True  # says Content-Length
    encoding: str | None = None
    sends: int | None = None
    stalls: bool = False
    seconds: float = 0.0  # from the first byte to the last


@dataclass
class Request:
    path: str
    range: str | None
    sent: int = 0  # bytes of the body that went out


class Server(ThreadingHTTPServer):
    """Gives `answers[path]` one after the other, the last one again and again; records requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[Request] = []
        self.closing = Event()

    def url(self, path: str, *answers: Answer) -> str:
        """Set the answers of `path`; returns its URL."""
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answers = self.server.answers[self.path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        request = Request(self.path, self.headers["Range"])
        self.server.requests.append(request)
        try:
            for piece in self._body(answer, request.range):
                request.sent += len(piece)
                self.wfile.write(piece)
        except OSError:  # the client has closed the connection
            pass
        self.close_connection = True
        if answer.stalls:
            self.server.closing.wait(10)

    def _body(self, answer: Answer, asked: str | None) -> Iterator[bytes]:
        body, status, size = answer.body, answer.status, len(answer.body)
        content_range = None
        if status == 200 and answer.ranges and asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-")) + answer.shift
            body = body[start:][: answer.longest]
            status, content_range = 206, f"bytes {start}-{start + len(body) - 1}/{size}"
            if not body:
                status, content_range = 416, f"bytes */{size}" if answer.range_size else None
        self.send_response(status)
        if answer.length:
            self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        if answer.encoding:
            self.send_header("Content-Encoding", answer.encoding)
        self.end_headers()
        body = body[: answer.sends]
        pieces = 50 if answer.seconds else 1
        step = -(-len(body) // pieces) or 1
        for start in range(0, len(body), step):
            yield body[start : start + step]
            time.sleep(answer.seconds / pieces)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
