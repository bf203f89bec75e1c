"""A window or a token limit that the scheduler's batches exceed is refused before serving, by the flag to change."""

import pytest

from sglang_ascend_moe.errors import InvalidInput, WindowTooSmall
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import Role, SchedulerLimits, check_window, tokens_per_rank

LIMITS = SchedulerLimits(
    running_requests=33, prefill_tokens=1000, prefill_flag="--chunked-prefill-size", attention_ranks=4
)


def bytes_for(tokens: int) -> int:
    return 100 * tokens


def test_ranks_share_a_batch_evenly_and_the_last_token_needs_a_place():
    assert LIMITS.decode_tokens_per_rank == 9
    assert LIMITS.prefill_tokens_per_rank == 250


def test_the_largest_batch_decides_the_tokens():
    assert tokens_per_rank(Options(), LIMITS) == 250
    assert tokens_per_rank(Options(), LIMITS._replace(running_requests=1001)) == 251


@pytest.mark.parametrize(
    ("role", "requests", "tokens"),
    [("prefill", 100_000, 250), ("decode", 33, 9), ("decode", 2000, 500), ("null", 33, 250)],
    ids=["prefill never decodes", "decode never prefills", "decode of many requests", "both"],
)
def test_an_instance_is_sized_for_its_role(role: Role, requests: int, tokens: int):
    limits = LIMITS._replace(role=role, running_requests=requests)
    assert tokens_per_rank(Options(), limits) == tokens
    assert tokens_per_rank(Options(max_tokens=tokens), limits) == tokens
    with pytest.raises(InvalidInput):
        tokens_per_rank(Options(max_tokens=tokens - 1), limits)


@pytest.mark.parametrize(("role", "enough"), [("prefill", 100), ("decode", 900), ("null", 900)])
def test_a_window_of_a_prefill_instance_holds_no_decode_batch(role: Role, enough: int):
    limits = LIMITS._replace(role=role)
    check_window(Options(window_bytes=enough), limits, bytes_for)
    with pytest.raises(WindowTooSmall, match=f"Raise it to {enough}"):
        check_window(Options(window_bytes=enough - 1), limits, bytes_for)


@pytest.mark.parametrize("max_tokens", [250, 251, 100_000])
def test_a_sufficient_max_tokens_is_taken_as_it_is(max_tokens: int):
    assert tokens_per_rank(Options(max_tokens=max_tokens), LIMITS) == max_tokens


@pytest.mark.parametrize(
    ("limits", "remedy"),
    [
        (LIMITS, "Raise it to 250 or lower --chunked-prefill-size to 400"),
        (LIMITS._replace(running_requests=2000), "Raise it to 500 or lower --max-running-requests to 400"),
    ],
    ids=["prefill is larger", "decode is larger"],
)
def test_a_max_tokens_below_a_batch_names_both_remedies(limits: SchedulerLimits, remedy: str):
    with pytest.raises(InvalidInput, match="--ascend-moe-max-tokens 100") as refusal:
        tokens_per_rank(Options(max_tokens=100), limits)
    assert remedy in str(refusal.value)


@pytest.mark.parametrize(
    ("schedule", "enough"), [("auto", 900), ("prefill", 900), ("decode", 25_000)], ids=lambda value: str(value)
)
def test_a_window_must_hold_what_cannot_go_in_rounds(schedule: str, enough: int):
    check_window(Options(schedule=schedule, window_bytes=enough), LIMITS, bytes_for)
    with pytest.raises(WindowTooSmall, match=f"--ascend-moe-window-bytes {enough - 1}") as refusal:
        check_window(Options(schedule=schedule, window_bytes=enough - 1), LIMITS, bytes_for)
    assert f"Raise it to {enough}" in str(refusal.value)
    assert "--max-running-requests" in str(refusal.value)
    assert ("--chunked-prefill-size" in str(refusal.value)) == (schedule == "decode")


@pytest.mark.parametrize("options", [Options(), Options(schedule="collective")], ids=["no limit", "no window"])
def test_without_a_window_size_there_is_nothing_to_check(options: Options):
    check_window(options, LIMITS, lambda _: 10**18)
