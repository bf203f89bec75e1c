"""Prefill and decode instances that do not fit are told apart, naming both values."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.instance import (
    ALIKE,
    NO_DRAFTS,
    SIZES,
    Instance,
    digest_of_checkpoint,
    instance_of,
    require_pair,
)
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint

PREFILL = Instance(
    role="prefill",
    model="/models/a",
    model_digest="0" * 32,
    dtype="bfloat16",
    quantisation="none",
    row_quant="none",
    kv_dtype="bfloat16",
    kv_layout="MHATokenToKVPool",
    page_size=1,
    kv_token_bytes=1024,
    tp_size=2,
    dp_size=1,
    ep_size=2,
    mixed_sizes=False,
    drafts="EAGLE, 1 branches, 0",
)
DECODE = msgspec.structs.replace(PREFILL, role="decode", model="/copies/a")
FIELDS = {field.name for field in msgspec.structs.fields(Instance)}


def other(value: object) -> object:
    return value + 1 if isinstance(value, int) else f"{value}-other"


def test_equal_instances_fit_wherever_their_model_lies():
    require_pair(PREFILL, DECODE)


def test_every_field_is_compared_or_says_who_it_is():
    assert FIELDS - {"role", "model", "mixed_sizes", "pp_size"} == set(ALIKE) | set(SIZES)


def test_prefill_may_have_stages_and_decode_none_or_as_many():
    staged = msgspec.structs.replace(PREFILL, pp_size=4)
    require_pair(staged, DECODE)
    require_pair(staged, msgspec.structs.replace(DECODE, pp_size=4))
    with pytest.raises(ProtocolMismatch, match="pp_size is 4 on the prefill and 2 on the decode instance"):
        require_pair(staged, msgspec.structs.replace(DECODE, pp_size=2))
    with pytest.raises(ProtocolMismatch, match="pp_size is 1 on the prefill and 2 on the decode instance"):
        require_pair(PREFILL, msgspec.structs.replace(DECODE, pp_size=2))


def test_a_decode_instance_may_draft_where_the_prefill_instance_does_not():
    plain = msgspec.structs.replace(PREFILL, drafts=NO_DRAFTS)
    require_pair(plain, DECODE)
    with pytest.raises(ProtocolMismatch, match=r"drafts is EAGLE.* on the prefill and none on the decode instance"):
        require_pair(PREFILL, msgspec.structs.replace(DECODE, drafts=NO_DRAFTS))


@pytest.mark.parametrize("field", [*ALIKE, *SIZES])
def test_a_difference_names_both_values_and_the_remedy(field: str):
    ours = getattr(DECODE, field)
    theirs = msgspec.structs.replace(PREFILL, **{field: other(ours)})
    with pytest.raises(ProtocolMismatch, match="do not fit") as refusal:
        require_pair(theirs, DECODE)
    assert f"{field} is {other(ours)} on the prefill and {ours} on the decode instance" in str(refusal.value)
    assert {**ALIKE, **SIZES}[field] in str(refusal.value)


@pytest.mark.parametrize("field", [*SIZES, "model_digest"])
def test_sizes_alone_may_differ_and_only_if_both_say_so(field: str):
    mixed = msgspec.structs.replace(PREFILL, mixed_sizes=True, **{field: other(getattr(PREFILL, field))})
    with pytest.raises(ProtocolMismatch):
        require_pair(mixed, DECODE)
    both = msgspec.structs.replace(DECODE, mixed_sizes=True)
    if field in SIZES:
        require_pair(mixed, both)
    else:
        with pytest.raises(ProtocolMismatch, match="model_digest"):
            require_pair(mixed, both)


def test_two_instances_of_one_role_are_no_pair():
    with pytest.raises(ProtocolMismatch, match="a decode instance stands where"):
        require_pair(DECODE, DECODE)


def test_a_block_survives_its_way():
    assert instance_of(json.loads(msgspec.json.encode(PREFILL)), "it") == PREFILL


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (None, "does not say what it is"),
        ({}, "does not say what it is"),
        ({**msgspec.to_builtins(PREFILL), "surprise": 1}, "surprise"),
        ({**msgspec.to_builtins(PREFILL), "tp_size": "2"}, "tp_size"),
        ({**msgspec.to_builtins(PREFILL), "protocol": 99, "surprise": 1}, "speaks protocol 99"),
    ],
    ids=["nothing", "empty", "unknown field", "wrong type", "another protocol"],
)
def test_everything_else_is_no_block(said: object, why: str):
    with pytest.raises(ProtocolMismatch, match=why):
        instance_of(said, "the instance at http://h:1")


def test_copies_of_a_checkpoint_have_one_digest(checkpoint: Path, tmp_path: Path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "9"}))
    (copy / "README.md").write_text("notes")
    assert digest_of_checkpoint(copy) == digest_of_checkpoint(checkpoint)


def test_other_weights_of_the_same_shapes_have_another_digest(checkpoint: Path, tmp_path: Path):
    assert digest_of_checkpoint(write_checkpoint(tmp_path, seed=1)) != digest_of_checkpoint(checkpoint)


def test_another_config_has_another_digest(checkpoint: Path, tmp_path: Path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": 1}))
    assert digest_of_checkpoint(copy) != digest_of_checkpoint(checkpoint)
