"""A server on this machine that says what a test tells it to."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastloop.policies.vla.serving import EngineClient


def completion(text, **members):
    """The body of a good response."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "details": {"x": 1}}
    choice["finish_reason"] = "stop"
    return json.dumps({"choices": [choice], "usage": usage, **members}).encode()


class Reply:
    """What the server says once.

    Attributes:
        body, status, kind, headers: of the response.
        length: what it says that its body is long; the body's own where it is None, and nothing is
            said where it is "none".
        pause_s: before the status, or where `drip` is true after each byte of the body.
        raw: all that is sent, in place of a response.
        chunked: whether `body` is in chunks.
    """

    def __init__(
        self, body=b"", status=200, *, kind="application/json", length=None, pause_s=0.0,
        drip=False, raw=None, chunked=False, headers=(),
    ):  # fmt: skip
        self.body, self.status, self.kind, self.length = body, status, kind, length
        self.pause_s, self.drip, self.raw = pause_s, drip, raw
        self.chunked, self.headers = chunked, dict(headers)


class Engine:
    """The server.

    Attributes:
        replies: what it says next; the last one again and again.
        requests: (path, headers, body) of those that came.
    """

    def __init__(self):
        self.replies, self.requests = [], []
        self.closing = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                engine.requests.append((self.path, dict(self.headers), json.loads(body)))
                replies = engine.replies
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                if callable(reply):
                    reply = reply(engine.requests[-1])
                with contextlib.suppress(OSError):  # the client had enough
                    self.say(reply)

            def say(self, reply):
                if reply.raw is not None:
                    self.wfile.write(reply.raw)
                    return
                if not reply.drip:
                    engine.closing.wait(reply.pause_s)
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.kind)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif reply.length != "none":
                    self.send_header("Content-Length", str(reply.length or len(reply.body)))
                self.end_headers()
                if not reply.drip:
                    self.wfile.write(reply.body)
                    return
                for byte in reply.body:
                    self.wfile.write(bytes([byte]))
                    if engine.closing.wait(reply.pause_s):
                        return

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture
def client(engine):
    """A function (**options) -> EngineClient of `engine`; pauses are short."""

    def make(**options):
        return EngineClient(engine.url, "small", **{"backoff_s": 0.01, "timeout_s": 10, **options})

    return make


@pytest.fixture
def reply():
    """`Reply`, as a class."""
    return Reply


@pytest.fixture
def answered():
    """A function text -> the body of a good response."""
    return completion


@pytest.fixture
def elapsed():
    """A function that says how many seconds a call took, whatever became of it."""

    def measure(call):
        begin = time.monotonic()
        try:
            call()
        except Exception as error:
            return time.monotonic() - begin, error
        return time.monotonic() - begin, None

    return measure
