"""A release of SGLang that nobody tested is served with one line that says so, or refused if the user wants that."""

from __future__ import annotations

import contextlib
import logging
from importlib.metadata import version

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.launcher import arguments, given_flags, served_releases
from sglang_ascend_moe.serving.launcher.served_releases import (
    allow_release,
    refuse_later_features,
    refuse_later_model,
)
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.sglang_release import TESTED, TESTED_ON_NPUS


@pytest.fixture
def newer(monkeypatch) -> None:
    monkeypatch.setattr(served_releases, "installed", lambda: "0.5.99")


@pytest.mark.parametrize("device", ["cpu", "npu"])
def test_the_installed_release_is_served(device: str):
    assert version("sglang") in (TESTED_ON_NPUS if device == "npu" else TESTED)
    assert allow_release(Options(strict_version=True), device) == ""


@pytest.mark.usefixtures("newer")
def test_another_release_is_served_and_named():
    assert "0.5.99" in allow_release(Options(), "cpu")


@pytest.mark.usefixtures("newer")
def test_another_release_is_refused_if_the_user_wants_that():
    with pytest.raises(Unsupported, match=r"SGLang 0\.5\.99.*leave out --ascend-moe-strict-version"):
        allow_release(Options(strict_version=True), "cpu")


@pytest.mark.parametrize(
    ("words", "since"),
    [
        ("--speculative-algorithm EAGLE", "0.5.23"),
        ("--page-size 16", "0.5.22"),
        ("--page-size 1", "0.5.18"),
        ("--page-size 128 --device npu", "0.5.18"),
        ("--tokenizer-worker-num 2", "0.5.23"),
        ("--tokenizer-worker-num 1", "0.5.18"),
        ("--disaggregation-mode decode", "0.5.21"),
        ("--pp-size 2", "0.5.21"),
        ("--nnodes 2", "0.5.21"),
        ("--attn-cp-size 2", "0.5.21"),
        ("--enable-eplb", "0.5.21"),
        ("--ep-num-redundant-experts 4", "0.5.21"),
        ("--init-expert-location experts.json", "0.5.21"),
        ("--expert-distribution-recorder-mode stat", "0.5.21"),
        ("--expert-balancedness-report-mode server_log", "0.5.21"),
        ("--expert-balancedness-report-mode off", "0.5.18"),
        ("--tp-size 2 --dp-size 2 --enable-dp-attention", "0.5.18"),
    ],
)
@pytest.mark.parametrize("release", sorted({*TESTED, *TESTED_ON_NPUS}))
def test_a_flag_is_refused_where_the_release_is_not_served_with_it(monkeypatch, release: str, words: str, since: str):
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    flag, *_ = words.split()
    said = pytest.raises(Unsupported, match=rf"^{flag} needs SGLang {since} with --ascend-moe: .* leave the flag out$")
    with said if release < since else contextlib.nullcontext():
        refuse_later_features(given_flags.read(words.split()).settings)


@pytest.mark.parametrize("architecture", ["Qwen3VLMoeForConditionalGeneration", "Qwen3MoeForCausalLM"])
@pytest.mark.parametrize("release", ["0.5.18", "0.5.21"])
def test_a_model_is_refused_where_the_release_is_not_served_with_it(monkeypatch, release: str, architecture: str):
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    refused = release == "0.5.18" and "VL" in architecture
    said = pytest.raises(Unsupported, match=rf"^folder is a {architecture}, which needs SGLang 0\.5\.21 ")
    with said if refused else contextlib.nullcontext():
        refuse_later_model("folder", [architecture])


class Reached(Exception):
    """SGLang's own resolution, which a test does not need."""


def resolve(monkeypatch: pytest.MonkeyPatch, **keywords: bool) -> None:
    """As far as SGLang's own part, of an engine whose machine and hooks are as needed."""

    def stop(_server_args: object) -> None:
        raise Reached

    for name in ("require_all",):
        monkeypatch.setattr(arguments.hooks, name, lambda: None)
    for name in ("refuse_machine", "_choose_backend", "refuse_attention"):
        monkeypatch.setattr(arguments, name, lambda *_: None)
    server_args = arguments.engine_server_args(model_path="dummy", device="cpu", ascend_moe=True, **keywords)
    with pytest.raises((Reached, Unsupported)) as end:
        arguments.resolve_once(stop, server_args)
    if isinstance(end.value, Unsupported):
        raise end.value


@pytest.mark.usefixtures("newer")
def test_an_engine_warns_of_another_release_or_refuses_it(monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        resolve(monkeypatch)
    assert [record for record in caplog.records if "0.5.99" in record.getMessage()] != []
    with pytest.raises(Unsupported, match=r"0\.5\.99"):
        resolve(monkeypatch, ascend_moe_strict_version=True)
