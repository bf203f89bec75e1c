"""The servers that `plan calibrate` and `plan check` measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.launch.bench.serving_client import Load, drive
from sglang_ascend_moe.launch.bench.serving_command import PRESET, READY_SECONDS
from sglang_ascend_moe.launch.bench.serving_records import ServingRecord
from sglang_ascend_moe.launch.plan.machine_times import Schedule
from sglang_ascend_moe.launch.servers.server_process import Progress, ServerProcess

VARIANTS: dict[Schedule, str] = {"relay-free": "relay-free", "buffer-centric": "collective"}
"""Hosts serve none with relay buffers: `collective`, torch.distributed's all-to-all without graphs, stands for it."""
MOST_RUNNING = 8
CHUNK = 2048
"""`--max-running-requests` and `--chunked-prefill-size` of the servers."""


class Deployed(NamedTuple):
    """One server of so many ranks; or, `apart`, a prefill and a decode server of so many ranks each, and a router."""

    schedule: Schedule
    ranks: int
    apart: bool = False

    @property
    def name(self) -> str:
        return f"{self.schedule}, {'1P1D of ' if self.apart else ''}{self.ranks} rank(s)"


def deployments(ranks: Sequence[int]) -> list[Deployed]:
    """On one rank nothing is exchanged, so the schedules are one. Servers apart have the fewest ranks: all of them
    share this machine."""
    alone = [Deployed(schedule, number) for schedule in VARIANTS for number in ranks]
    return [one for one in alone if one.ranks > 1 or one.schedule == "relay-free"] + [
        Deployed("relay-free", min(ranks), apart=True)
    ]


@contextmanager
def served(folder: Path, deployed: Deployed) -> Iterator[Callable[[Load], ServingRecord]]:
    """The model of `bench serving`, and who asks for it. Raises `ServerFailed`, `ClientFailed`."""
    from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint

    model = folder / "model"
    if not model.exists():
        write_checkpoint(model, sizes=PRESET)
    log = folder / f"{deployed.schedule}-{deployed.ranks}-{'apart' if deployed.apart else 'together'}.log"
    server = _apart(model, deployed.ranks, log) if deployed.apart else _together(model, deployed, log)
    with server:
        server.wait_until_ready(READY_SECONDS, _show_nothing)
        yield lambda load: drive(server.url, str(model), load, variant=deployed.schedule, round_number=1)


def _together(model: Path, deployed: Deployed, log: Path) -> ServerProcess:
    flags = [
        "--model-path", str(model), "--device", "cpu", "--ascend-moe", "--tp-size", str(deployed.ranks),
        "--disable-radix-cache", "--max-running-requests", str(MOST_RUNNING), "--chunked-prefill-size", str(CHUNK),
    ]  # fmt: skip
    if deployed.schedule == "buffer-centric":
        flags += ["--ascend-moe-schedule", "collective"]
    return ServerProcess(flags, log)


def _apart(model: Path, ranks: int, log: Path) -> ServerProcess:
    """`ascend-moe disagg up`, which answers at the port of its router."""
    role = (
        f"tp_size = {ranks}\nmax_running_requests = {MOST_RUNNING}\nchunked_prefill_size = {CHUNK}\n"
        "options = { disable-radix-cache = true }\n"
    )
    file = log.with_suffix(".toml")
    file.write_text(f'model_path = "{model}"\n[prefill]\n{role}[decode]\n{role}')
    words = ["disagg", "up", "--file", str(file), "--logs", str(log.with_suffix(""))]
    return ServerProcess(words, log, module="sglang_ascend_moe.launch.main")


def _show_nothing(_progress: Progress) -> None:
    """Servers start often; the line before each is enough."""
