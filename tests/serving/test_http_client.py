"""Servers are asked as they are meant to be: past proxies on this machine, with the key that is given, and errors are
what the system says."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from requests import HTTPError

from sglang_ascend_moe.serving.http_client import answered
from tests.http_server import serving

SECONDS = 60.0


@pytest.fixture
def said() -> list[tuple[str, str | None, bytes]]:
    """Path, key and body of every request."""
    return []


@pytest.fixture
def port(said: list[tuple[str, str | None, bytes]]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            said.append((self.path, self.headers["Authorization"], body))
            self.send_response(404 if self.path == "/nowhere" else 200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"cut" if self.path == "/cut" else b"told")

        def do_POST(self) -> None:
            self.do_GET()

    with serving(Handler) as port:
        yield port


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nobody listens, nor can."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def test_a_body_is_posted_as_json(port: int, said: list[tuple[str, str | None, bytes]]):
    with answered("POST", f"http://127.0.0.1:{port}/generate", body={"text": "a"}, timeout=SECONDS) as answer:
        assert (answer.status_code, answer.content) == (200, b"told")
    assert said == [("/generate", None, b'{"text": "a"}')]


def test_a_status_is_the_callers_to_judge(port: int):
    with answered("GET", f"http://127.0.0.1:{port}/nowhere", timeout=SECONDS) as answer:
        assert (answer.status_code, answer.reason) == (404, "Not Found")
        with pytest.raises(HTTPError, match="404"):
            answer.raise_for_status()


def test_the_key_that_is_given_goes_before_one_of_netrc(
    port: int, said: list[tuple[str, str | None, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "netrc").write_text("default login somebody password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("no_proxy", "")
    for key in ("key", None):
        with answered("GET", "http://server.invalid/", api_key=key, timeout=SECONDS):
            pass
    assert [key for _, key, _ in said] == ["Bearer key", None]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_asked_past_proxies(
    host: str, port: int, closed_port: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("no_proxy", "")
    with answered("GET", f"http://{host}:{port}/", timeout=SECONDS) as answer:
        assert answer.content == b"told"


def test_nobody_there_is_what_the_system_says(closed_port: int):
    with (
        pytest.raises(ConnectionRefusedError, match=r"^\[Errno 111\] Connection refused$"),
        answered("GET", f"http://127.0.0.1:{closed_port}/", timeout=SECONDS),
    ):
        pass


def test_an_answer_that_breaks_off_is_an_error_of_the_system(port: int):
    with (
        pytest.raises(OSError, match="3 bytes read, 1 more expected"),
        answered("GET", f"http://127.0.0.1:{port}/cut", timeout=SECONDS) as answer,
    ):
        _ = answer.content


@pytest.mark.parametrize("url", ["server", "localhost:1/x", "http://", "http://[::1", "http://server:port/"])
def test_what_is_no_address_is_a_wrong_value(url: str):
    with (
        pytest.raises(ValueError, match=r"URL|No connection adapters|valid host"),
        answered("GET", url, timeout=SECONDS),
    ):
        pass


def test_an_answer_that_is_no_json_is_a_wrong_value(port: int):
    with (
        pytest.raises(ValueError, match="Expecting value"),
        answered("GET", f"http://127.0.0.1:{port}/", timeout=SECONDS) as answer,
    ):
        answer.json()
