"""A decode instance asks what a prefill instance is before it takes keys and values, whoever started them."""

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.instance import Instance
from sglang_ascend_moe.serving.worker import pairing
from tests.exchange.control.test_instance import DECODE, PREFILL
from tests.http_server import serving


class Prefill:
    """An HTTP server that tells `said` as its internal state."""

    def __init__(self) -> None:
        self.said: dict[str, Any] = {}
        self.asked: list[str | None] = []
        self.port = 0


@pytest.fixture
def prefill() -> Iterator[Prefill]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"internal_states": [found.said]}).encode())

    found = Prefill()
    with serving(Handler) as found.port:
        yield found


@pytest.fixture
def manager(prefill: Prefill, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What SGLang's decode side knows of that prefill instance, whose bootstrap server has another port."""
    monkeypatch.setattr(pairing, "_own", DECODE)
    monkeypatch.setattr(pairing, "_fitting", set())
    return SimpleNamespace(
        prefill_info_table={"127.0.0.1:8998": SimpleNamespace(prefill_http_port=prefill.port)},
        server_args=SimpleNamespace(api_key="secret"),
    )


@pytest.mark.parametrize(("node", "port"), [(0, 30000), (1, None)])
def test_an_instance_is_asked_at_its_node_0(monkeypatch: pytest.MonkeyPatch, node: int, port: int | None):
    parallel = SimpleNamespace(node_rank=node)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", SimpleNamespace(get_parallel=lambda: parallel))
    row = {"prefill_http_port": 30000}
    pairing.leave_port_to_node_0(None, "url", row)
    assert row == {"prefill_http_port": port}


def ask(manager: Any, known: bool = True) -> bool | None:
    return pairing.require_prefill_fits(known, manager, "127.0.0.1:8998")


def told(instance: Instance) -> dict[str, Any]:
    return {pairing.INSTANCE_KEY: msgspec.to_builtins(instance)}


def test_a_prefill_instance_that_fits_is_asked_once(prefill: Prefill, manager: Any):
    prefill.said = told(PREFILL)
    assert ask(manager) is None
    assert ask(manager) is None
    assert prefill.asked == ["Bearer secret"]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (told(msgspec.structs.replace(PREFILL, model_digest="f" * 32)), "model_digest is f.* on the prefill and 0"),
        (told(DECODE), "a decode instance stands where"),
        ({}, "does not say what it is"),
    ],
    ids=["another model", "another role", "without --ascend-moe"],
)
def test_one_that_does_not_fit_stops_the_decode_instance(
    prefill: Prefill, manager: Any, said: dict[str, Any], message: str
):
    prefill.said = said
    with pytest.raises(ProtocolMismatch, match=message):
        ask(manager)


def test_one_that_does_not_answer_is_asked_again(prefill: Prefill, manager: Any):
    prefill.said = told(PREFILL)
    [info] = manager.prefill_info_table.values()
    info.prefill_http_port = 1
    assert ask(manager) is False
    info.prefill_http_port = prefill.port
    assert ask(manager) is None


def test_one_that_sglang_does_not_know_yet_is_not_asked(prefill: Prefill, manager: Any):
    assert ask(manager, known=False) is None
    assert prefill.asked == []


def test_without_ascend_moe_nothing_is_asked(prefill: Prefill, manager: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pairing, "_own", None)
    assert ask(manager) is None
    assert prefill.asked == []
