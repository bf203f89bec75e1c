"""A window or a token limit that the scheduler's batches exceed is refused before serving, by the flag to change."""

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput, WindowTooSmall
from sglang_ascend_moe.serving.options import WINDOW_FACTOR, Options
from sglang_ascend_moe.serving.worker.sizing import (
    DEVICE_PART,
    Role,
    SchedulerLimits,
    check_window,
    micro_batch,
    prefill_batch,
    sized,
    tokens_of_request,
    tokens_per_rank,
)
from sglang_ascend_moe.windows.layout import ExchangeParameters, WindowLayout, expected_rounds, plan_window

LIMITS = SchedulerLimits(
    running_requests=33, prefill_tokens=1000, prefill_flag="--chunked-prefill-size", attention_ranks=4
)


def bytes_for(tokens: int) -> int:
    return 100 * tokens


def test_ranks_share_a_batch_evenly_and_the_last_token_needs_a_place():
    assert LIMITS.decode_tokens_per_rank == 9
    assert LIMITS.prefill_tokens_per_rank == 250


def test_a_request_brings_the_tokens_of_its_tree():
    """As DeepSeek-R1 is served on NPUs: 26 requests of 3 tokens each."""
    limits = SchedulerLimits(26, 64, "--chunked-prefill-size", attention_ranks=1, request_tokens=3)
    assert tokens_per_rank(Options(), limits) == 78
    with pytest.raises(InvalidInput, match=r"decode batch of 78 tokens .* or lower --max-running-requests to 20$"):
        tokens_per_rank(Options(max_tokens=62), limits)


@pytest.mark.parametrize(
    ("stages", "asked", "role", "expected"),
    [
        pytest.param(1, 4, "null", 32, id="no pipeline"),
        pytest.param(4, None, "null", 8, id="as SGLang divides them"),
        pytest.param(4, 2, "null", 8, id="less was asked, which may be raised while serving"),
        pytest.param(4, 20, "prefill", 20, id="more was asked"),
        pytest.param(4, 64, "null", 32, id="more was asked than there are"),
        pytest.param(64, None, "null", 1, id="more stages than requests"),
        pytest.param(4, 2, "decode", 32, id="a decode instance"),
    ],
)
def test_stages_of_a_pipeline_have_a_part_of_the_requests_each(stages, asked, role, expected):
    assert micro_batch(32, pp_size=stages, asked=asked, role=role) == expected


def test_as_many_requests_fit_as_all_parts_together():
    limits = SchedulerLimits(16, 8, "--chunked-prefill-size", attention_ranks=2, micro_batches=4)
    assert tokens_per_rank(Options(), limits) == 8
    with pytest.raises(InvalidInput, match=r"or lower --max-running-requests to 40$"):
        tokens_per_rank(Options(max_tokens=5), limits)
    with pytest.raises(InvalidInput, match=r"or lower --max-running-requests to 10$"):
        tokens_per_rank(Options(max_tokens=5), limits._replace(role="decode"))


def test_chunks_that_a_pipeline_chooses_may_be_as_large_as_a_batch():
    assert prefill_batch(512, 4096, 100) == (512, "--chunked-prefill-size")
    assert prefill_batch(512, 4096, 100, dynamic=True) == (4096, "--max-prefill-tokens")
    assert prefill_batch(8192, 4096, 100, dynamic=True) == (8192, "--chunked-prefill-size")


@pytest.mark.parametrize(
    ("algorithm", "steps", "branches", "tokens", "expected"),
    [
        pytest.param(None, None, None, None, 1, id="without drafts"),
        pytest.param("NEXTN", None, None, None, 4, id="as SGLang chooses"),
        pytest.param("NEXTN", 2, 1, 3, 3, id="a chain"),
        pytest.param("EAGLE", 2, 1, 8, 3, id="a chain, whose length SGLang corrects"),
        pytest.param("EAGLE3", 3, 4, 8, 8, id="a tree"),
        pytest.param("EAGLE3", 2, 8, 4, 8, id="more branches than are verified"),
    ],
)
def test_tokens_of_a_request_are_those_of_its_tree(algorithm, steps, branches, tokens, expected):
    settings = SimpleNamespace(
        speculative_algorithm=algorithm,
        speculative_num_steps=steps,
        speculative_eagle_topk=branches,
        speculative_num_draft_tokens=tokens,
    )
    assert tokens_of_request(settings) == expected


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


def windows_of(
    ranks: int,
    experts: int,
    hidden: int,
    topk: int,
    limits: SchedulerLimits,
    options: Options,
    memory: int | None = None,
) -> WindowLayout:
    parameters = ExchangeParameters(
        ranks=ranks,
        num_experts=experts,
        hidden=hidden,
        topk=topk,
        max_tokens=tokens_per_rank(options, limits),
        distinct_topk=True,
    )
    return plan_window(sized(parameters, options, limits, memory))


GIB = 2**30
MODELS = {
    "DeepSeek-R1, 3,585 tokens on 16 ranks": (16, 256, 7168, 8, 3585, 2 * GIB),
    "GLM-5.1, 16,384 tokens on 32 ranks": (32, 256, 6144, 8, 16384, 8 * GIB),
}


@pytest.mark.parametrize(("ranks", "experts", "hidden", "topk", "tokens", "most"), MODELS.values(), ids=MODELS)
def test_prefill_windows_of_large_models_fit_a_die(
    ranks: int, experts: int, hidden: int, topk: int, tokens: int, most: int
):
    limits = SchedulerLimits(1, tokens, "--chunked-prefill-size", 1, "prefill")
    layout = windows_of(ranks, experts, hidden, topk, limits, Options(), 64 * GIB)
    assert layout.total_bytes < most
    rounds = expected_rounds(layout.parameters, layout.capacity)
    assert rounds.alike == 1
    # Tokens may not divide evenly.
    assert rounds.worst - math.ceil(ranks / WINDOW_FACTOR) in (0, 1)


@given(
    ranks=st.sampled_from([1, 2, 4, 8, 16]), requests=st.integers(1, 300), tokens=st.integers(1, 3000),
    topk=st.integers(1, 8), role=st.sampled_from(["null", "prefill", "decode"]),
    factor=st.none() | st.floats(1, 1024), memory=st.none() | st.integers(0, 2**28),
)  # fmt: skip
def test_a_window_holds_every_decode_batch_and_no_more_than_one_round_of_everything(
    ranks: int, requests: int, tokens: int, topk: int, role: Role, factor: float | None, memory: int | None
):
    limits = SchedulerLimits(requests, tokens, "--chunked-prefill-size", 1, role)
    layout = windows_of(ranks, 16, 64, topk, limits, Options(window_factor=factor), memory)
    p = layout.parameters
    per_token = p.ranks * p.rows_per_token
    decode, everything = limits.decode_tokens_per_rank * per_token, p.max_tokens * per_token
    wanted = (factor or WINDOW_FACTOR) * p.max_tokens * topk
    assert decode <= layout.capacity <= everything
    # A row more may be there where the last page has room for it.
    bounded = memory is not None and layout.total_bytes >= memory // DEVICE_PART - 2 * 4096
    assert bounded or layout.capacity >= min(wanted, everything)
    if memory is not None and layout.total_bytes > memory // DEVICE_PART:
        assert layout.capacity < max(1, limits.decode_tokens_per_rank) * per_token + 4096


@pytest.mark.parametrize(
    ("options", "role"),
    [(Options(schedule="decode"), "null"), (Options(), "decode"), (Options(max_tokens=4000), "decode")],
    ids=["decode schedule", "decode instance", "decode instance of more tokens"],
)
def test_what_never_goes_in_rounds_has_room_for_everything(options: Options, role: Role):
    limits = LIMITS._replace(role=role)
    layout = windows_of(8, 64, 64, 4, limits, options, 2**20)
    assert layout.capacity == 8 * 4 * tokens_per_rank(options, limits)


def test_a_window_size_that_is_given_is_taken():
    assert windows_of(8, 64, 64, 4, LIMITS, Options(window_bytes=2**21), 2**20).total_bytes <= 2**21
    with pytest.raises(WindowTooSmall, match="--ascend-moe-window-bytes 65536"):
        windows_of(8, 64, 64, 4, LIMITS, Options(window_bytes=2**16))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"window_factor": 0.5}, "--ascend-moe-window-factor 0.5: must be from 1"),
        ({"window_factor": float("nan")}, "--ascend-moe-window-factor nan"),
        ({"window_factor": 2.0, "window_bytes": 2**20}, "leave one of them out"),
        ({"window_factor": 2.0, "schedule": "decode"}, "leave one of them out"),
        ({"window_factor": 2.0, "schedule": "collective"}, "leave one of them out"),
    ],
    ids=["below one", "no number", "beside bytes", "without rounds", "without windows"],
)
def test_a_factor_that_says_nothing_is_refused(values: dict, problem: str):
    with pytest.raises(InvalidInput, match=problem):
        Options(**values)
