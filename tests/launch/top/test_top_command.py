"""`ascend-moe top` shows a server once for scripts, and says what is wrong with one that does not answer."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler

import msgspec
import pytest

from sglang_ascend_moe.launch.top import top_command
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK
from sglang_ascend_moe.serving.worker.live_state import STATE_KEY, RankState
from tests.http_server import serving

from .test_rates import AFTER, BEFORE


def server_info(states: list[RankState]) -> bytes:
    return json.dumps({"internal_states": [{STATE_KEY: msgspec.to_builtins(states)}]}).encode()


def test_two_looks_make_one_table(capsys):
    answers = iter([server_info(list(BEFORE.states)), server_info(list(AFTER.states))])

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(next(answers))

    with serving(Server) as port:
        assert top_command.main(["--url", f"http://127.0.0.1:{port}", "--once", "--interval", "0.1"]) == OK
    said = capsys.readouterr().out
    assert "rank 0 receives 1.60 times the mean" in " ".join(said.split())
    assert next(answers, None) is None


def test_a_server_that_does_not_answer_is_named(capsys):
    assert top_command.main(["--url", "http://127.0.0.1:1", "--once"]) == CHECK_FAILED
    assert "no server answers there" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["0", "soon", "nan", "inf"])
def test_an_interval_that_is_none_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        top_command.main(["--interval", given])
    assert "is not a number of seconds of at least" in capsys.readouterr().err
