"""With a secret a decode instance believes only what a prefill instance seals for its challenge."""

import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.instance import answer_challenge
from sglang_ascend_moe.exchange.control.secret import CHALLENGE_BYTES, Secret, read_secret
from sglang_ascend_moe.serving.options import Options, attach
from sglang_ascend_moe.serving.worker import pairing
from tests.exchange.control.test_instance import DECODE, PREFILL
from tests.http_server import serving

SEALED = msgspec.structs.replace(PREFILL, sealed=True)
SEALED_DECODE = msgspec.structs.replace(DECODE, sealed=True)
OTHER = Secret(b"x" * 32)


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(b"s" * 32)
    path.chmod(0o600)
    return path


class Prefill:
    """Answers a challenge with what `say` returns for it, 404 for None."""

    def __init__(self) -> None:
        self.port = 0
        self.say: Callable[[str], Any] = lambda _: None
        self.challenges: list[str] = []


@pytest.fixture
def prefill() -> Iterator[Prefill]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            assert asked.path == pairing.INSTANCE_ROUTE
            [challenge] = parse_qs(asked.query)["challenge"]
            found.challenges.append(challenge)
            said = found.say(challenge)
            self.send_response(404 if said is None else 200)
            self.end_headers()
            if said is not None:
                self.wfile.write(said if isinstance(said, bytes) else msgspec.json.encode(said))

    found = Prefill()
    with serving(Handler) as found.port:
        yield found


@pytest.fixture
def ask(prefill: Prefill, secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool | None]:
    monkeypatch.setattr(pairing, "_own", SEALED_DECODE)
    monkeypatch.setattr(pairing, "_fitting", set())
    manager = SimpleNamespace(
        prefill_info_table={"127.0.0.1:8998": SimpleNamespace(prefill_http_port=prefill.port)},
        server_args=SimpleNamespace(api_key=None),
    )
    attach(manager.server_args, Options(secret_file=str(secret_file)))
    return lambda: pairing.require_prefill_fits(True, manager, "127.0.0.1:8998")


def test_a_sealed_instance_is_believed(prefill, ask, secret_file):
    secret = read_secret(secret_file)
    prefill.say = lambda challenge: answer_challenge(secret, SEALED, challenge)
    assert ask() is None


def test_every_question_has_a_challenge_of_its_own(prefill, ask, secret_file, monkeypatch):
    secret = read_secret(secret_file)
    prefill.say = lambda challenge: answer_challenge(secret, SEALED, challenge)
    for _ in range(5):
        monkeypatch.setattr(pairing, "_fitting", set())
        ask()
    assert len(set(prefill.challenges)) == 5


def test_a_replayed_answer_is_refused(prefill, ask, secret_file):
    secret = read_secret(secret_file)
    recorded = answer_challenge(secret, SEALED, "00" * CHALLENGE_BYTES)
    prefill.say = lambda _: recorded
    with pytest.raises(ProtocolMismatch, match="seal"):
        ask()


@pytest.mark.parametrize(
    ("say", "message"),
    [
        pytest.param(lambda c: answer_challenge(OTHER, SEALED, c), "holds another secret there", id="another secret"),
        pytest.param(lambda _: {"instance": SEALED, "seal": "0" * 64}, "does not seal", id="no seal"),
        pytest.param(lambda _: {"instance": SEALED, "seal": "1" * 64}, "forged or replayed", id="a forged seal"),
        pytest.param(lambda _: {"instance": SEALED}, "does not seal what it says of itself", id="unsealed"),
        pytest.param(lambda _: None, "does not seal what it says of itself", id="no such route"),
        pytest.param(lambda _: b"[" * 100_000, "does not say what it is", id="deeply nested"),
        pytest.param(lambda _: b"\xff\xfe", "does not say what it is", id="no JSON"),
        pytest.param(lambda _: b" " * (pairing.MAX_ANSWER_BYTES + 1), "says more than", id="huge"),
    ],
)
def test_everything_else_stops_the_decode_instance(prefill, ask, say, message):
    prefill.say = say
    with pytest.raises(ProtocolMismatch, match=message):
        ask()


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """In place of SGLang's, which takes long to import."""
    app = FastAPI()
    monkeypatch.setitem(sys.modules, "sglang.srt.entrypoints.http_server", SimpleNamespace(app=app))
    return app


class Manager:
    async def get_internal_state(self) -> list[dict[str, Any]]:
        return [{pairing.INSTANCE_KEY: msgspec.to_builtins(SEALED)}]


def serve(options: Options | None) -> None:
    server_args = SimpleNamespace()
    if options is not None:
        attach(server_args, options)
    pairing.add_instance_route(server_args, Manager(), None, None, [], None)


def test_the_route_answers_with_a_seal(app, secret_file):
    serve(Options(secret_file=str(secret_file)))
    challenge = "ab" * CHALLENGE_BYTES
    answer = TestClient(app).get(pairing.INSTANCE_ROUTE, params={"challenge": challenge})
    assert answer.json() == msgspec.to_builtins(answer_challenge(read_secret(secret_file), SEALED, challenge))


@pytest.mark.parametrize("challenge", ["", "zz", "00" * 31, "00" * 10_000])
def test_the_route_answers_nothing_but_a_challenge(app, secret_file, challenge):
    serve(Options(secret_file=str(secret_file)))
    answer = TestClient(app).get(pairing.INSTANCE_ROUTE, params={"challenge": challenge})
    assert (answer.status_code, "hexadecimal digits" in answer.text) == (400, True)


@pytest.mark.parametrize("options", [None, Options()], ids=["without --ascend-moe", "without a secret"])
def test_without_a_secret_there_is_no_route(app, options):
    serve(options)
    assert TestClient(app).get(pairing.INSTANCE_ROUTE, params={"challenge": "00"}).status_code == 404


def test_a_secret_on_one_side_only_is_told_by_the_blocks():
    from sglang_ascend_moe.exchange.control.instance import require_pair

    with pytest.raises(ProtocolMismatch, match=r"sealed.*True.*False"):
        require_pair(SEALED, DECODE)
