"""What a rank writes down when its exchange fails, so that all ranks' accounts can be read together afterwards."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from sglang_ascend_moe.errors import InvalidInput, code_of
from sglang_ascend_moe.exchange.control.blocks import Block, Count, Rank, decode, encode
from sglang_ascend_moe.native.faults import Fault

FILE_SUFFIX = ".post-mortem"


class PostMortem(Block, frozen=True, kw_only=True):
    """One rank's account of the end of a session.

    outcome: the `Result` by name. code, message: of what was raised; no code if that is not of this package. culprit,
    step, epoch: whom this rank blames, where it stood itself. stage: of the pipeline; None if there is only one. nodes
    [ranks]: where each runs. missing: ranks for which the failed wait still waited. waited_s [ranks]: seconds for which
    each rank had held this one up in the whole session. received [ranks][experts of this rank]: rows of the last
    dispatch.
    """

    ranks: Annotated[int, Meta(ge=1)]
    nodes: list[int]
    process: int
    time: float
    outcome: str
    code: str
    message: str
    culprit: Rank
    step: str
    epoch: int
    missing: list[Rank]
    waited_s: list[float]
    received: list[list[Count]]
    stage: int | None = None


class Recorder:
    """Writes the account of one rank into a folder; at most once."""

    def __init__(self, folder: Path, session: bytes, rank: int, nodes: list[int], stage: int | None = None) -> None:
        """Makes the folder. Raises `InvalidInput` if that cannot be done or it cannot be written into."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"post_mortem={str(folder)!r} (--ascend-moe-post-mortem): {error}") from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidInput(f"post_mortem={str(folder)!r} (--ascend-moe-post-mortem) cannot be written into")
        self._folder = folder
        self._session = session
        self._rank = rank
        self._nodes = nodes
        self._stage = stage
        self._written = False

    def write(self, fault: Fault, error: BaseException, waited_s: list[float], received: list[list[int]]) -> None:
        """Writes the account; a file that cannot be written becomes a note on `error`, which matters more."""
        if self._written:
            return
        self._written = True
        account = PostMortem(
            session=self._session, rank=self._rank, ranks=len(self._nodes), nodes=self._nodes, process=os.getpid(),
            time=time.time(), outcome=fault.result.name, code=code_of(error),
            message=f"{type(error).__name__}: {error}",
            culprit=fault.culprit, step=fault.step.name.lower(), epoch=fault.epoch, missing=list(fault.missing),
            waited_s=waited_s, received=received, stage=self._stage,
        )  # fmt: skip
        path = self._folder / f"{self._session.hex()[:12]}-rank{self._rank}{FILE_SUFFIX}"
        partial = path.with_suffix(".partial")
        try:
            partial.write_bytes(encode(account))
            partial.rename(path)
        except OSError as problem:
            error.add_note(f"the post-mortem file could not be written: {problem}")


def read_accounts(folder: Path) -> dict[bytes, list[PostMortem]]:
    """All accounts in a folder: session -> accounts by rank. Raises `ProtocolMismatch` for a file that is none."""
    sessions: dict[bytes, list[PostMortem]] = {}
    for path in sorted(folder.glob(f"*{FILE_SUFFIX}")):
        account = decode(path.read_bytes(), PostMortem)
        sessions.setdefault(account.session, []).append(account)
    return {session: sorted(accounts, key=lambda account: account.rank) for session, accounts in sessions.items()}
