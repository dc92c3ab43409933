import json
import socket

import pytest

from fastloop.policies.vla.serving import EngineClient, EngineError, Fault, Sampling

ASK = [{"role": "user", "content": "where to?"}]


def fault_of(client, **options):
    with pytest.raises(EngineError) as caught:
        client.complete(ASK, **options)
    return caught.value


def test_a_good_answer_and_what_was_asked(engine, client, reply, answered):
    engine.replies = [reply(answered("left"))]
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=7, seed=3, extra={"top_k": 5})
    result = client(api_key="secret").complete(ASK, sampling=sampling)
    assert (result.text, result.finish_reason, result.attempts) == ("left", "stop", 1)
    assert result.usage == {"prompt_tokens": 7, "completion_tokens": 3}
    assert 0 < result.latency_ms < 10_000
    (path, headers, body) = engine.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "small", "messages": ASK, "stream": False, "temperature": 0.5, "top_p": 0.9,
        "max_tokens": 7, "seed": 3, "top_k": 5,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "na\u00efve \u2603 \U0001f697", "a\nb\t\x00"])
@pytest.mark.parametrize("chunked", [False, True])
def test_any_text_arrives(engine, client, reply, answered, text, chunked):
    body = answered(text)
    if chunked:
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    engine.replies = [reply(body, chunked=chunked)]
    assert client().complete(ASK).text == text
    engine.replies = [reply(json.dumps(json.loads(answered(text)), ensure_ascii=False).encode())]
    assert client().complete(ASK).text == text


def test_half_a_surrogate_pair_is_replaced(engine, client, reply, answered):
    engine.replies = [reply(answered("a\ud800b"))]
    assert client().complete(ASK).text == "a?b"


def test_a_body_without_a_length_is_read_to_its_end(engine, client, reply, answered):
    engine.replies = [reply(answered("left"), length="none")]
    assert client().complete(ASK).text == "left"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(engine, client, reply, answered, status):
    engine.replies = [reply(b"", status), reply(b"", status), reply(answered("left"))]
    result = client(attempts=3).complete(ASK)
    assert (result.text, result.attempts, len(engine.requests)) == ("left", 3, 3)


def test_a_server_that_stays_busy_is_given_up(engine, client, reply):
    engine.replies = [reply(b'{"error": {"message": "too many\\n requests"}}', 429)]
    error = fault_of(client(attempts=3))
    assert (error.fault, len(engine.requests)) == (Fault.STATUS, 3)
    assert "says 429: 'too many requests'" in str(error)


def test_a_pause_that_the_server_asks_for_is_kept(engine, client, reply, answered, elapsed):
    engine.replies = [reply(b"", 503, headers={"Retry-After": "1"}), reply(answered("left"))]
    seconds, error = elapsed(lambda: client().complete(ASK))
    assert error is None
    assert seconds >= 1


def test_a_pause_that_is_longer_than_the_time_left_ends_the_call(engine, client, reply, elapsed):
    engine.replies = [reply(b"", 429, headers={"Retry-After": "60"})]
    seconds, error = elapsed(lambda: client().complete(ASK, deadline_s=2.0))
    assert (error.fault, len(engine.requests)) == (Fault.STATUS, 1)
    assert seconds < 2


@pytest.mark.parametrize("asked", ["soon", "-1", "\xb2", "Wed, 21 Oct 2015 07:28:00 GMT", "1e400"])
def test_other_words_about_the_pause_are_passed_over(engine, client, reply, answered, asked):
    engine.replies = [reply(b"", 503, headers={"Retry-After": asked}), reply(answered("left"))]
    assert client().complete(ASK).attempts == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_a_request_that_was_wrong_is_not_repeated(engine, client, reply, status):
    engine.replies = [reply(b'{"detail": "no such model"}', status)]
    error = fault_of(client())
    assert (error.fault, len(engine.requests)) == (Fault.STATUS, 1)
    assert f"{status}: 'no such model'" in str(error)


@pytest.mark.parametrize(
    "body", [b"\xff\xfe", b"[" * 9999, b"[1]", b'{"error": 5}', b'{"error": {}}', b"x" * 9999]
)
def test_any_words_about_an_error_do(engine, client, reply, body):
    engine.replies = [reply(body, 400, kind="text/plain")]
    error = fault_of(client())
    assert error.fault == Fault.STATUS
    assert len(str(error)) < 900


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_refused(engine, client, reply, status):
    engine.replies = [reply(b"", status, headers={"Location": "http://192.0.2.1/steal"})]
    error = fault_of(client())
    assert (error.fault, len(engine.requests)) == (Fault.REDIRECT, 1)
    assert "http://192.0.2.1/steal" in str(error)


def test_a_body_that_breaks_off(engine, client, reply, answered):
    body = answered("left")
    engine.replies = [reply(body, length=len(body) + 1)]
    assert fault_of(client()).fault == Fault.TRUNCATED
    engine.replies = [reply(b"40\r\n" + body[:10], chunked=True)]
    assert fault_of(client()).fault == Fault.TRUNCATED


def test_a_body_that_never_ends(engine, client, reply):
    engine.replies = [reply(b" " * 100_000, pause_s=0.01, drip=True, length="none")]
    assert fault_of(client(max_bytes=50)).fault == Fault.TOO_LARGE


def test_a_body_that_is_too_large(engine, client, reply, answered):
    engine.replies = [reply(answered("x" * 5000))]
    assert fault_of(client(max_bytes=5000)).fault == Fault.TOO_LARGE
    assert client(max_bytes=len(answered("x" * 5000))).complete(ASK).text == "x" * 5000


@pytest.mark.parametrize("kind", ["text/html", "text/event-stream", "", "application/xml"])
def test_a_wrong_content_type(engine, client, reply, answered, kind):
    engine.replies = [reply(answered("left"), kind=kind)]
    error = fault_of(client())
    assert error.fault == Fault.CONTENT_TYPE
    assert "expected application/json" in str(error)


@pytest.mark.parametrize("body", [b"", b"left", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000])
def test_a_body_that_is_no_json(engine, client, reply, body):
    engine.replies = [reply(body, length=len(body) or "none")]
    assert fault_of(client()).fault == Fault.NOT_JSON


@pytest.mark.parametrize(
    "body",
    [
        b"null", b"[]", b'"x"', b"{}", b'{"choices": []}', b'{"choices": [{}]}', b'{"choices": 3}',
        b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"content": ["left"]}}]}', b'{"choices": {"0": 1}}',
        b'{"error": {"message": "cuda out of memory"}}',
    ],
)  # fmt: skip
def test_json_without_an_answer(engine, client, reply, body):
    engine.replies = [reply(body)]
    error = fault_of(client())
    assert error.fault == Fault.NO_TEXT
    assert body.decode()[:40] in str(error)


@pytest.mark.parametrize("usage", [None, [], 3, {"total_tokens": "many"}])
def test_usage_may_be_anything(engine, client, reply, answered, usage):
    engine.replies = [reply(answered("left", usage=usage))]
    assert client().complete(ASK).usage == {}


@pytest.mark.parametrize("drip", [False, True])
def test_a_slow_server_takes_no_longer_than_it_may(engine, client, reply, answered, elapsed, drip):
    engine.replies = [reply(answered("left"), pause_s=0.05 if drip else 30.0, drip=drip)]
    seconds, error = elapsed(lambda: client(timeout_s=0.3).complete(ASK))
    assert error.fault == Fault.TIMEOUT
    assert 0.25 < seconds < 5
    assert len(engine.requests) == 1


def test_the_deadline_holds_for_all_attempts_together(engine, client, reply, elapsed):
    engine.replies = [reply(b"", 503)]
    hasty = client(attempts=10_000, backoff_s=0.1)
    seconds, error = elapsed(lambda: hasty.complete(ASK, deadline_s=1.0))
    assert error.fault == Fault.STATUS
    assert seconds < 5
    assert 2 <= len(engine.requests) <= 4  # after 0, 0.1, 0.3 and 0.7 s


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_no_time_at_all(engine, client, reply, answered, deadline_s):
    engine.replies = [reply(answered("left"))]
    assert fault_of(client(), deadline_s=deadline_s).fault == Fault.TIMEOUT
    assert engine.requests == []


@pytest.mark.parametrize(
    "raw", [b"left\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 " + b"9" * 70000]
)
def test_no_http_at_all(engine, client, reply, raw):
    engine.replies = [reply(raw=raw)]
    assert fault_of(client()).fault == Fault.PROTOCOL


def test_a_server_that_hangs_up_is_asked_again(engine, client, reply, answered):
    engine.replies = [reply(raw=b""), reply(answered("left"))]
    assert client().complete(ASK).attempts == 2


def test_nobody_there(elapsed):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        port = unused.getsockname()[1]
        client = EngineClient(f"http://127.0.0.1:{port}", "small", backoff_s=0.05, attempts=3)
        seconds, error = elapsed(lambda: client.complete(ASK))
    assert error.fault == Fault.UNREACHABLE
    assert seconds >= 0.15


def test_a_server_without_tls(engine, reply):
    engine.replies = [reply()]
    client = EngineClient(engine.url.replace("http:", "https:"), "small", timeout_s=10)
    assert fault_of(client).fault == Fault.UNREACHABLE
    assert engine.requests == []


def test_a_proxy_of_the_environment_is_not_used(engine, client, reply, answered, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    engine.replies = [reply(answered("left"))]
    assert client().complete(ASK).text == "left"


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://127.0.0.1", ("127.0.0.1", 80, "/v1")),
        ("http://127.0.0.2:5/", ("127.0.0.2", 5, "/v1")),
        ("https://127.0.0.1/api/v3/", ("127.0.0.1", 443, "/api/v3")),
        ("http://[::1]:7", ("::1", 7, "/v1")),
    ],
)
def test_addresses(url, place):
    address = EngineClient(url, "small").address
    assert (address.host, address.port, address.path) == place


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:30000", "http://[2001:db8::1]/", "http://0.0.0.0"]
)
def test_another_machine_has_to_be_allowed(url):
    with pytest.raises(ValueError, match="another machine"):
        EngineClient(url, "small")
    assert EngineClient(url, "small", allow_remote=True).address.places


@pytest.mark.parametrize(
    "url",
    [
        "", "127.0.0.1:80", "ftp://127.0.0.1", "http://", "http://u:p@127.0.0.1", "file:///x",
        "http://:p@127.0.0.1",
        "http://127.0.0.1:99999", "http://[::1", "http://127.0.0.1/a b", "http://127.0.0.1/\u2603",
        "http://127.0.0.1?x=1", "http://" + "a" * 300,
    ],
)  # fmt: skip
def test_what_is_no_address(url):
    with pytest.raises(ValueError, match=r"URL|expected|looked up|escaping"):
        EngineClient(url, "small")


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"attempts": 0}, {"backoff_s": -1},
                                     {"max_bytes": 0}, {"timeout_s": float("nan")},
                                     {"api_key": "a\r\nHost: x"}])  # fmt: skip
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="must be"):
        EngineClient("http://127.0.0.1", "small", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"max_tokens": 0},
        {"extra": {"stream": True}}, {"extra": {"messages": []}}, {"extra": {"seed": 1}},
        {"extra": {"x": object()}}, {"extra": {"x": float("inf")}},
    ],
)  # fmt: skip
def test_sampling_out_of_range(options):
    with pytest.raises(ValueError, match=r"must be|extra|JSON"):
        Sampling(**options)
