"""The router of a deployment notices within seconds that a server is gone, and that it is back.

Servers are stand-ins: a prefill server answers when its decode server has got the request too, as SGLang's does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from sglang_ascend_moe.launch.disagg.router_flags import WATCHFUL
from sglang_ascend_moe.launch.servers.server_process import free_port

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

PATIENCE_S = 5
"""For which a prefill server waits for the decode server of a request."""
LONGEST_S = 60
"""In which a router with its own defaults, which looks once a minute and wants two good looks, has not noticed."""


class StandIn:
    """A prefill or decode server at a port. `rooms`: those whose decode server has got its request."""

    def __init__(self, role: str, rooms: dict[str, threading.Event], port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._say(200, {"model_path": "model", "is_generation": True})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                arrived = rooms[str(body["bootstrap_room"])]
                if role == "decode":
                    arrived.set()
                self._say(200 if arrived.wait(PATIENCE_S) else 500, {"text": role, "meta_info": {}})

            def _say(self, status: int, content: object) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Routed:
    """A router with one prefill and two decode servers."""

    def __init__(self, log: Path, stack: ExitStack) -> None:
        self.rooms: dict[str, threading.Event] = defaultdict(threading.Event)
        self.prefill = StandIn("prefill", self.rooms)
        self.decode = [StandIn("decode", self.rooms) for _ in range(2)]
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        words = ["--pd-disaggregation", "--policy", "round_robin", "--port", str(port), *WATCHFUL]
        words += ["--prometheus-port", str(free_port()), "--prefill", self.prefill.url, "none"]
        for server in self.decode:
            words += ["--decode", server.url]
        output = stack.enter_context(log.open("w"))
        command = [sys.executable, "-m", "sglang_router.launch_router", *words]
        self.process = stack.enter_context(subprocess.Popen(command, stdout=output, stderr=output))
        stack.callback(self.process.terminate)

    def answers(self) -> bool:
        """Whether a request is answered well; a request that waits for a dead server is not."""
        body = {"text": "a", "sampling_params": {"max_new_tokens": 1}}
        try:
            return requests.post(f"{self.url}/generate", json=body, timeout=PATIENCE_S - 1).status_code == 200
        except requests.RequestException:
            return False

    def await_answers(self, many: int, within_s: float) -> None:
        """Until so many requests one after the other are answered well."""
        stopped = threading.Event()
        clock = threading.Timer(within_s, stopped.set)
        clock.start()
        good = 0
        while good < many:
            good = good + 1 if self.answers() else 0
            assert not stopped.wait(0.2), f"no {many} good answers in a row within {within_s} s"
            assert self.process.poll() is None
        clock.cancel()


@pytest.fixture
def routed(tmp_path: Path) -> Iterator[Routed]:
    with ExitStack() as stack:
        made = Routed(tmp_path / "router.log", stack)
        made.await_answers(4, 300)
        yield made
        made.process.terminate()
    for server in made.decode:
        server.stop()
    made.prefill.stop()


def test_a_dead_decode_server_gets_no_requests_after_a_few_looks(routed: Routed):
    dead = routed.decode.pop(0)
    dead.stop()
    routed.await_answers(10, LONGEST_S)


def test_a_prefill_server_that_is_back_is_used_after_a_few_looks(routed: Routed):
    port = routed.prefill.port
    routed.prefill.stop()
    # Until the router has seen it dead.
    while routed.answers():
        pass
    routed.prefill = StandIn("prefill", routed.rooms, port)
    routed.await_answers(4, LONGEST_S)
