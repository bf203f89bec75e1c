"""A real Prometheus with the files of `ascend-moe monitoring`, for minutes of which there are seconds in a test."""

from __future__ import annotations

import math
import re
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import requests

from sglang_ascend_moe.launch.monitoring.monitoring_command import FILES, main
from sglang_ascend_moe.launch.servers.server_process import free_port
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from tests.launch.monitoring.written_queries import expressions_of

WAIT_SECONDS = 120.0
POLL_SECONDS = 0.2
RANGE = "10s"


class Prometheus:
    """Scrapes the server at `url` every second. A context manager."""

    def __init__(self, folder: Path, url: str) -> None:
        self._files = folder / "files"
        assert main([str(self._files)]) == OK
        for name in FILES:
            path = self._files / name
            path.write_text(_hastened(path.read_text()).replace("localhost:30000", url.removeprefix("http://")))
        self._log = folder / "prometheus.log"
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._command = [
            "prometheus", f"--config.file={self._files / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def wait_for_alert(self, name: str, summary: str) -> None:
        """Return when the alert fires with a summary that begins so."""

        def others() -> list[str]:
            said = self._firing(name)
            return [] if any(one.startswith(summary) for one in said) else [f"{name} says {said}"]

        self._wait_while(others)

    def wait_for_every_answer(self) -> None:
        """Return when each query of dashboard and rules has a value that is a number."""
        asked = expressions_of(self._files)
        self._wait_while(lambda: [query for query in asked if not any(map(math.isfinite, self._values(query)))])

    def _values(self, query: str) -> list[float]:
        return [float(series["value"][1]) for series in self._get("query", query=query)["result"]]

    def _firing(self, name: str) -> list[str]:
        """Summaries of the alert."""
        alerts = [alert for alert in self._get("alerts")["alerts"] if alert["state"] == "firing"]
        return [alert["annotations"]["summary"] for alert in alerts if alert["labels"]["alertname"] == name]

    def _wait_while(self, missing: Callable[[], list[str]]) -> None:
        """Return when nothing is missing. Raises TimeoutError with what is."""
        deadline = time.monotonic() + WAIT_SECONDS
        while lacks := missing():
            if time.monotonic() > deadline:
                raise TimeoutError("\n".join(lacks))
            threading.Event().wait(POLL_SECONDS)

    def _get(self, what: str, **asked: str) -> Any:
        """Data of an answer; none of any series while Prometheus starts."""
        try:
            answer = requests.get(f"{self._url}/api/v1/{what}", asked, timeout=WAIT_SECONDS)
            if answer.status_code != requests.codes.service_unavailable:
                return answer.json()["data"]
        except requests.ConnectionError:
            assert self._process.poll() is None, self._log.read_text()
        return {"result": [], "alerts": []}


def _hastened(text: str) -> str:
    """Rates over seconds, alerts at once, whatever of it a file has."""
    text = text.replace("$__rate_interval", RANGE).replace("$instance", ".*").replace("[5m]", f"[{RANGE}]")
    return re.sub(r"for: \d+m", "for: 0s", re.sub(r"(scrape|evaluation)_interval: 15s", r"\1_interval: 1s", text))
