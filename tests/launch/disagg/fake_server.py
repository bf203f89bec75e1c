"""A server of `/generate` without a model: answers depend on the prompt alone, and faults can be asked for."""

import json
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


class FakeServer:
    """Listens on a free port of 127.0.0.1. A context manager.

    fault: what it does wrong: `token` (another token at position 3), `logprob` (one moved by 5), `error` (status 500),
    `cut` (streams end early), `whole` (streams come in one piece), `later` (another token from request `later` on),
    `after abort` (another token once a client has left).
    """

    def __init__(self, fault: str = "", *, later: int = 0) -> None:
        self._fault = fault
        self._lock = threading.Lock()
        self._requests = 0
        self._later = later
        self.aborted = 0
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                fake._handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        if self._fault == "error":
            handler.send_error(500)
            return
        with self._lock:
            late = self._requests >= self._later
            self._requests += 1
        try:
            self._answer(handler, body, late)
        except (BrokenPipeError, ConnectionResetError):
            self.aborted += 1

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], late: bool) -> None:
        tokens = body["sampling_params"]["max_new_tokens"]
        handler.send_response(200)
        handler.end_headers()
        if not body["stream"]:
            handler.wfile.write(json.dumps(self._piece(body["text"], tokens, late)).encode())
            return
        last = tokens - 1 if self._fault == "cut" else tokens
        for so_far in range(tokens if self._fault == "whole" else 1, last + 1):
            piece = json.dumps(self._piece(body["text"], so_far, late))
            handler.wfile.write(f"data: {piece}\n\n".encode())
        if self._fault != "cut":
            handler.wfile.write(b"data: [DONE]\n\n")

    def _piece(self, prompt: str, tokens: int, late: bool) -> dict[str, Any]:
        wrong = self._fault == "token" or (self._fault == "later" and late)
        wrong |= self._fault == "after abort" and self.aborted > 0
        positions = []
        for position in range(tokens):
            best = zlib.crc32(f"{prompt} {position}".encode()) % 1000
            candidates = [[-0.1, best, None], [-3.0, best + 1, None], [-4.0, best + 2, None]]
            if wrong and position == 3:
                candidates = [[-0.1, best + 5, None], *candidates[1:]]
            if self._fault == "logprob" and position == 3:
                candidates[0][0] = -5.1
            positions.append(candidates)
        return {
            "text": "",
            "meta_info": {
                "prompt_tokens": 1 + len(prompt) // 4,
                "cached_tokens": 0,
                "output_token_logprobs": [[best[0], best[1], None] for best, *_ in positions],
                "output_top_logprobs": positions,
            },
        }
