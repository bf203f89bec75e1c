"""What becomes of the flags and variables of a command line, each with its reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.launch.adopt.environment_changes import change_environment
from sglang_ascend_moe.launch.adopt.flag_changes import REPLACED, change_flags, split_flags
from sglang_ascend_moe.launch.adopt.older_flags import REMOVED, RENAMED
from sglang_ascend_moe.serving.launcher.declared_flags import declared_flags
from sglang_ascend_moe.serving.launcher.given_flags import known_flags

FLAGS = {
    "--cuda-graph-bs 2 4 8": ("renamed", "--cuda-graph-bs-decode 2 4 8"),
    "--cuda-graph-max-bs=16": ("renamed", "--cuda-graph-max-bs-decode 16"),
    "--nsa-prefill-cp-mode in-seq-split": ("renamed", "--cp-strategy zigzag"),
    "--enable-nsa-prefill-context-parallel": ("renamed", "--enable-prefill-cp"),
    "--disable-piecewise-cuda-graph": ("renamed", "--cuda-graph-backend-prefill disabled"),
    "--prefill-round-robin": ("dropped", ""),
    "--moe-a2a-backend deepep": ("dropped", ""),
    "--moe-a2a ascend_fuseep": ("dropped", ""),
    "--moe-a2a-backend=none": ("dropped", ""),
    "--deepep-mode auto": ("dropped", ""),
    "--deepep-mode normal": ("translated", "--ascend-moe-schedule prefill"),
    "--deepep-mode=low_latency": ("translated", "--ascend-moe-schedule decode"),
    "--deepep-config tuned.json": ("dropped", ""),
    "--deepep-dispatcher-output-dtype int8": ("translated", "--ascend-moe-quant int8"),
    "--deepep-dispatcher-output-dtype bf16": ("dropped", ""),
    "--fuseep-mode 1": ("dropped", ""),
}
# Stay, for the server to say what is wrong with them.
STAY = [
    "--moe-a2a-backend mori", "--moe-a2a-backend", "--deepep-mode fast", "--deepep-dispatcher-output-dtype fp8",
    "--tp 16", "--dp-size=2", "--chunked-prefill-size -1", "--cuda-graph", "--no-such-flag 1 2", "stray", "-x",
]  # fmt: skip
INT8 = {"DEEP_NORMAL_MODE_USE_INT8_QUANT": "1"}
DROPPED_VARIABLES = [
    "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK", "DEEPEP_NORMAL_LONG_SEQ_ROUND", "DEEPEP_HCCL_BUFFSIZE",
    "DEEPEP_NORMAL_LONG_SEQ_PER_ROUND_TOKENS", "DEEPEP_NORMAL_COMBINE_ENABLE_LONG_SEQ", "SGLANG_ZBAL_LOCAL_MEM_SIZE",
    "SGLANG_ZBAL_BOOTSTRAP_URL", "ZBAL_NPU_ALLOC_CONF", "ZBCCL_ENABLE_GRAPH", "SGLANG_NPU_FUSED_MOE_MODE",
    "SGLANG_DEEPEP_BF16_DISPATCH",
]  # fmt: skip
KEPT_VARIABLES = ["HCCL_OP_EXPANSION_MODE", "PYTORCH_NPU_ALLOC_CONF", "ASCEND_MF_STORE_URL", "SGLANG_SET_CPU_AFFINITY"]


@pytest.mark.parametrize("given_words", FLAGS)
def test_a_flag_is_changed_and_the_reason_is_said(given_words: str):
    kind, now = FLAGS[given_words]
    around = ["--model-path", "m", *given_words.split(), "--trust-remote-code"]
    kept, (change,) = change_flags(around)
    assert kept == ["--model-path", "m", *now.split(), "--trust-remote-code"]
    assert (change.kind, change.was, change.now) == (kind, given_words, now)
    assert change.why


@pytest.mark.parametrize("words", STAY)
def test_other_flags_stay_as_they_were_typed(words: str):
    assert change_flags(words.split()) == (words.split(), [])


@given(st.lists(st.from_regex(r"(--[a-z][a-z-]{0,6}(=[^\\n]{0,4})?|-?[0-9a-z{ ]{0,5})", fullmatch=True), max_size=8))
def test_flags_are_taken_apart_without_losing_a_word(words: list[str]):
    parts = [part.words() if part.name else list(part.values) for part in split_flags(words)]
    assert [word for part in parts for word in part] == words


@pytest.mark.parametrize("flag", RENAMED)
def test_a_new_name_is_a_flag_that_takes_the_value(flag: str):
    newer = RENAMED[flag]
    (declared,) = (one for one in declared_flags() if newer.flag in one.flags)
    values = [newer.value] if newer.value is not None else list(newer.values.values())
    assert flag not in known_flags()
    assert [value for value in values if declared.choices is not None and value not in declared.choices] == []


def test_what_was_removed_is_no_flag_any_more_and_what_is_replaced_is_one():
    assert set(REMOVED) & known_flags() == set()
    assert set(REPLACED) <= known_flags()


@pytest.mark.parametrize("name", DROPPED_VARIABLES)
def test_a_variable_of_a_replaced_exchange_is_dropped_with_a_reason(name: str):
    changed = change_environment({name: "7", "OTHER": "1"}, quantised=True, hccl_mb=200)
    assert (changed.variables, changed.flags) == ({"OTHER": "1"}, [])
    assert [(change.kind, change.was, change.now, bool(change.why)) for change in changed.changes] == [
        ("dropped", f"{name}=7", "", True)
    ]


@pytest.mark.parametrize("name", KEPT_VARIABLES)
def test_other_variables_stay(name: str):
    assert change_environment({name: "1"}, quantised=True, hccl_mb=200) == ({name: "1"}, [], [])


@pytest.mark.parametrize(
    ("value", "quantised", "flags"),
    [("1", True, ["--ascend-moe-quant", "int8"]), ("0", True, []), ("1", False, [])],
    ids=["quantised experts", "off", "experts in bfloat16"],
)
def test_rows_in_int8_become_a_flag_where_experts_take_them(value: str, quantised: bool, flags: list[str]):
    changed = change_environment(dict.fromkeys(INT8, value), quantised=quantised, hccl_mb=None)
    assert (changed.variables, changed.flags) == ({}, flags)
    assert [change.kind for change in changed.changes] == ["translated" if flags else "dropped"]


@pytest.mark.parametrize(
    ("value", "needed", "left"),
    [("1600", 200, "200"), ("1600", 2000, "1600"), ("1600", None, "1600"), ("$SIZE", 200, "$SIZE")],
    ids=["more than is needed", "less than is needed", "not known", "no number"],
)
def test_the_buffer_of_hccl_holds_what_still_passes_through_it(value: str, needed: int | None, left: str):
    changed = change_environment({"HCCL_BUFFSIZE": value}, quantised=True, hccl_mb=needed)
    assert changed.variables == {"HCCL_BUFFSIZE": left}
    assert bool(changed.changes) == (value != left)
