"""When an exchange fails, every rank that lives leaves an account, and together they tell who waited for whom."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from sglang_ascend_moe.errors import InvalidInput, PeerFault, PeerLost, ProtocolMismatch
from sglang_ascend_moe.exchange.control.post_mortem import FILE_SUFFIX, read_accounts
from sglang_ascend_moe.launch.doctor.doctor_command import main as doctor
from sglang_ascend_moe.launch.doctor.post_mortem_accounts import account_of
from sglang_ascend_moe.native.codes import Step
from tests.exchange.harmed_ranks import SCENARIO, call, harm_at
from tests.exchange.pool import Ended, Rank
from tests.exchange.surface import open_exchange

CULPRIT = 1


def fail_with_accounts(rank: Rank, folder: str, step: Step, number: signal.Signals, timeout_s: float) -> None:
    exchange = open_exchange("windows", rank, SCENARIO, timeout_s=timeout_s, post_mortem=folder)
    call(exchange, "decode", rank)
    if rank.rank == CULPRIT:
        exchange.watch_steps(harm_at(step, number))
    with pytest.raises(PeerFault):
        for _ in range(2):
            call(exchange, "decode", rank)
    rank.note("failed")


@pytest.mark.parametrize("step", [Step.ANNOUNCE, Step.PLACE, Step.DONE], ids=lambda step: step.name.lower())
def test_survivors_of_a_death_leave_accounts_that_blame_the_dead(fresh_pool, tmp_path, capsys, step):
    pool = fresh_pool(3)
    pool.start(fail_with_accounts, str(tmp_path), step, signal.SIGKILL, 30.0)
    assert pool.collect(dead={CULPRIT})[CULPRIT] == Ended(-signal.SIGKILL)
    (accounts,) = read_accounts(tmp_path).values()
    assert [account.rank for account in accounts] == [0, 2]
    for account in accounts:
        assert (account.culprit, account.outcome, account.code, account.ranks) == (
            CULPRIT, "PEER_LOST", PeerLost.code, 3
        )  # fmt: skip
        assert account.epoch == 2
        assert len(account.received) == 3
        assert len(account.waited_s) == 3
    assert doctor(["--post-mortem", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "blamed: rank 1 (by 2)" in printed
    assert "rank 1 left none" in printed


def test_the_account_of_a_stall_names_the_slowest_rank(fresh_pool, tmp_path):
    pool = fresh_pool(3)
    pool.start(fail_with_accounts, str(tmp_path), Step.ANNOUNCE, signal.SIGSTOP, 1.0)
    pool.await_notes("failed", [0, 2])
    told = account_of(tmp_path)
    assert "blamed: rank 1 (by 2)" in told
    assert "was waiting for rank 1 at step counts, epoch 2" in told
    assert "most by rank 1" in told
    assert "3 ranks, 2 of them" in told
    pool.signal(CULPRIT, signal.SIGCONT)


def raise_with_accounts(rank: Rank, folder: str) -> None:
    exchange = open_exchange("windows", rank, SCENARIO, post_mortem=folder, stage=2)

    def experts(_: object) -> None:
        if rank.rank == CULPRIT:
            raise ArithmeticError("no such expert")

    with pytest.raises((ArithmeticError, PeerFault)):
        exchange.run(*SCENARIO.inputs(rank.size)[rank.rank], experts)


def test_a_rank_that_fails_itself_says_why(fresh_pool, tmp_path):
    fresh_pool(3).run(raise_with_accounts, str(tmp_path))
    (accounts,) = read_accounts(tmp_path).values()
    assert [account.culprit for account in accounts] == [CULPRIT] * 3
    assert [account.code for account in accounts] == [PeerLost.code, "", PeerLost.code]
    assert accounts[CULPRIT].message == "ArithmeticError: no such expert"
    assert "3 ranks of pipeline stage 2, 3 of them" in account_of(tmp_path)


def refuse_a_folder(rank: Rank, folder: str) -> None:
    with pytest.raises(InvalidInput, match="--ascend-moe-post-mortem"):
        open_exchange("windows", rank, SCENARIO, post_mortem=folder)


def test_a_folder_that_cannot_be_made_is_refused(fresh_pool, tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    fresh_pool(2).run(refuse_a_folder, str(blocker / "folder"))


def test_an_empty_folder_and_a_foreign_file_are_said_to_be_so(tmp_path, capsys):
    assert doctor(["--post-mortem", str(tmp_path)]) == 1
    assert "--ascend-moe-post-mortem" in capsys.readouterr().err
    Path(tmp_path, f"x{FILE_SUFFIX}").write_bytes(b"not msgpack")
    with pytest.raises(ProtocolMismatch):
        account_of(tmp_path)
    assert doctor(["--post-mortem", str(tmp_path)]) == 1
