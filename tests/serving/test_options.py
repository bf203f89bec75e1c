"""Flags, keyword arguments and Options are three spellings of the same thing."""

import argparse
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.options import (
    FLAGS,
    Options,
    add_flags,
    attach,
    from_namespace,
    options_of,
    parse_bytes,
    take_keywords,
    to_flags,
)

positive_seconds = st.floats(min_value=0, exclude_min=True, max_value=1e6)
folders = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
counts = st.none() | st.integers(min_value=1, max_value=2**63 - 1)


@st.composite
def any_options(draw: st.DrawFn) -> Options:
    schedule = draw(st.sampled_from(["auto", "decode", "prefill", "collective"]))
    ours = schedule != "collective"
    return Options(
        schedule=schedule,
        max_tokens=draw(counts),
        window_bytes=draw(counts) if ours else None,
        timeout_s=draw(positive_seconds),
        verify=ours and draw(st.booleans()),
        post_mortem=draw(folders) if ours else None,
        trace=draw(folders) if ours else None,
        secret_file=draw(folders) if ours else None,
        quant=draw(st.sampled_from(["none", "int8"])) if ours else "none",
        stay_awake=draw(st.booleans()),
        strict_version=draw(st.booleans()),
    )


def parsed(arguments: list[str]) -> Options | None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return from_namespace(parser.parse_args(arguments))


@given(any_options())
def test_options_survive_the_command_line(options: Options):
    assert parsed(to_flags(options)) == options


@given(any_options())
def test_options_survive_engine_keywords(options: Options):
    keywords = {"ascend_moe": True, "model_path": "m"}
    keywords |= {flag.keyword: getattr(options, field) for field, flag in FLAGS.items()}
    assert take_keywords(keywords) == options
    assert keywords == {"model_path": "m"}


@given(any_options())
def test_options_ride_on_the_arguments_through_pickling(options: Options):
    arguments = argparse.Namespace(tp_size=2)
    attach(arguments, options)
    assert options_of(pickle.loads(pickle.dumps(arguments))) == options


def test_nothing_rides_where_nothing_was_asked_for():
    assert options_of(argparse.Namespace(tp_size=2)) is None
    assert parsed([]) is None
    assert take_keywords({"ascend_moe": False}) is None


def test_defaults_are_those_of_the_struct():
    assert parsed(["--ascend-moe"]) == Options()
    assert take_keywords({"ascend_moe": True}) == Options()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("64MiB", 64 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("2kib", 2048),
        ("100MB", 10**8),
        (" 1GB ", 10**9),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_bytes_are_read_with_their_unit(text: str, expected: int):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--ascend-moe-schedule", "ring"], ["--ascend-moe-schedule", "'ring'", "collective"]),
        (["--ascend-moe-max-tokens", "0"], ["--ascend-moe-max-tokens", "0"]),
        (["--ascend-moe-max-tokens", "many"], ["--ascend-moe-max-tokens", "'many'"]),
        (["--ascend-moe-max-tokens", "1.5"], ["--ascend-moe-max-tokens", "'1.5'"]),
        (["--ascend-moe-window-bytes", "0"], ["--ascend-moe-window-bytes", "0"]),
        (["--ascend-moe-window-bytes", "64MX"], ["--ascend-moe-window-bytes", "'64MX'", "64MiB"]),
        (["--ascend-moe-window-bytes", "MiB"], ["--ascend-moe-window-bytes", "'MiB'"]),
        (["--ascend-moe-quant", "fp4"], ["--ascend-moe-quant", "'fp4'", "none"]),
        (["--ascend-moe-timeout", "0"], ["--ascend-moe-timeout", "0.0"]),
        (["--ascend-moe-timeout", "nan"], ["--ascend-moe-timeout", "nan"]),
        (["--ascend-moe-timeout", "inf"], ["--ascend-moe-timeout", "inf"]),
        (["--ascend-moe-timeout", "2e6"], ["--ascend-moe-timeout", "1000000"]),
        (["--ascend-moe-timeout", "soon"], ["--ascend-moe-timeout", "'soon'"]),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-window-bytes", "64MiB"],
            ["--ascend-moe-window-bytes", "--ascend-moe-schedule collective"],
        ),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-quant", "int8"],
            ["--ascend-moe-quant", "--ascend-moe-schedule collective"],
        ),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-verify"],
            ["--ascend-moe-verify", "--ascend-moe-schedule collective"],
        ),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-post-mortem", "folder"],
            ["--ascend-moe-post-mortem", "--ascend-moe-schedule collective"],
        ),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-trace", "folder"],
            ["--ascend-moe-trace", "--ascend-moe-schedule collective"],
        ),
        (
            ["--ascend-moe-schedule", "collective", "--ascend-moe-secret-file", "file"],
            ["--ascend-moe-secret-file", "--ascend-moe-schedule collective"],
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_value_that_cannot_be_used_is_refused_by_its_flag(arguments: list[str], named: list[str]):
    with pytest.raises(InvalidInput) as refusal:
        parsed(["--ascend-moe", *arguments])
    assert [text for text in named if text not in str(refusal.value)] == []


@pytest.mark.parametrize("flag", FLAGS.values(), ids=lambda flag: flag.flag)
def test_a_flag_without_ascend_moe_is_refused(flag):
    with pytest.raises(InvalidInput, match=f"{flag.flag} has no effect without --ascend-moe"):
        parsed([flag.flag] if flag.type is bool else [flag.flag, "1"])


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"ascend_moe": "yes"}, "ascend_moe='yes'"),
        ({"ascend_moe": True, "ascend_moe_max_tokens": True}, "--ascend-moe-max-tokens True"),
        ({"ascend_moe": True, "ascend_moe_max_tokens": 1.5}, "--ascend-moe-max-tokens 1.5"),
        ({"ascend_moe": True, "ascend_moe_schedule": 1}, "--ascend-moe-schedule 1"),
        ({"ascend_moe": True, "ascend_moe_verify": 1}, "--ascend-moe-verify 1"),
        ({"ascend_moe": True, "ascend_moe_verify": "yes"}, "--ascend-moe-verify 'yes'"),
        ({"ascend_moe": True, "ascend_moe_timeout": math.nan}, "--ascend-moe-timeout nan"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value),
)
def test_a_keyword_of_the_wrong_type_is_refused(keywords: dict[str, object], named: str):
    with pytest.raises(InvalidInput) as refusal:
        take_keywords(dict(keywords))
    assert named in str(refusal.value)


def test_keywords_may_be_text_as_on_the_command_line():
    keywords = {"ascend_moe": True, "ascend_moe_window_bytes": "1MiB", "ascend_moe_timeout": "5"}
    assert take_keywords(keywords) == Options(window_bytes=2**20, timeout_s=5.0)
