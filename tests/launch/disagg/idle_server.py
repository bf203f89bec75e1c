"""A server whose health is good and that does nothing else. Run as a module, with `--host` and `--port`."""

import argparse
from http.server import BaseHTTPRequestHandler, HTTPServer


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parsed = parser.parse_args()
    server = HTTPServer((parsed.host, parsed.port), Healthy)
    print("idle server is ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
