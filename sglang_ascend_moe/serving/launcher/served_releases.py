"""What a release of SGLang is not served with, and what becomes of one that nobody tested."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.options import FLAGS, Options
from sglang_ascend_moe.serving.sglang_release import DRAFTED, TESTED, TESTED_ON_NPUS, installed, reaches


class LaterFeature(NamedTuple):
    """A flag that is served from release `since` on only: how to see it in the server's settings, and why."""

    flag: str
    found: Callable[[Any], bool]
    since: str
    cause: str


LATER_FEATURES = (
    LaterFeature(
        "--speculative-algorithm",
        lambda settings: bool(settings.speculative_algorithm),
        DRAFTED,
        "drafts of earlier releases were never compared with SGLang's own",
    ),
    LaterFeature(
        "--page-size",
        lambda settings: (settings.page_size or 1) > 1 and device_of(settings) != "npu",
        "0.5.22",
        "earlier releases find pages of several tokens with a Triton kernel",
    ),
    LaterFeature(
        "--tokenizer-worker-num",
        lambda settings: settings.tokenizer_worker_num > 1,
        "0.5.23",
        "in earlier releases further processes for HTTP load no plugins, and would not check requests for the ranks",
    ),
    *(
        LaterFeature(flag, found, "0.5.21", "it was never tried with an earlier release")
        for flag, found in (
            ("--disaggregation-mode", lambda settings: settings.disaggregation_mode != "null"),
            ("--pp-size", lambda settings: settings.pp_size > 1),
            ("--nnodes", lambda settings: settings.nnodes > 1),
            ("--attn-cp-size", lambda settings: settings.attn_cp_size > 1),
            ("--enable-eplb", lambda settings: settings.enable_eplb),
            ("--ep-num-redundant-experts", lambda settings: settings.ep_num_redundant_experts > 0),
            ("--init-expert-location", lambda settings: settings.init_expert_location != "trivial"),
            ("--expert-distribution-recorder-mode", lambda settings: settings.expert_distribution_recorder_mode),
            # What it reports is recorded.
            ("--expert-balancedness-report-mode", lambda settings: settings.expert_balancedness_report_mode != "off"),
        )
    ),
)


LATER_MODELS = {"Qwen3VLMoeForConditionalGeneration": "0.5.21"}
"""Architecture -> the first release that serves it; in earlier ones ranks add features of images to other rows."""


def refuse_later_features(settings: Any) -> None:
    """Raise `Unsupported`, naming the flag, for the first that the installed release is not served with."""
    for later in LATER_FEATURES:
        if not reaches(later.since) and later.found(settings):
            raise Unsupported(
                f"{later.flag} needs SGLang {later.since} with --ascend-moe: {later.cause}. Install that release in"
                f" place of {installed()}, or leave the flag out"
            )


def refuse_later_model(path: str, architectures: Sequence[str]) -> None:
    """Raise `Unsupported` for a model that the installed release is not served with."""
    for architecture in architectures:
        since = LATER_MODELS.get(architecture, "")
        if not reaches(since):
            raise Unsupported(
                f"{path} is a {architecture}, which needs SGLang {since} with --ascend-moe. Install that release in"
                f" place of {installed()}, or serve the model without --ascend-moe"
            )


def problem_with_release(device: str) -> str:
    """That the installed SGLang is none that was tested with such devices; empty if it is one."""
    tested = TESTED_ON_NPUS if device == "npu" else TESTED
    if installed() in tested:
        return ""
    where = " on NPUs" if device == "npu" else ""
    return f"--ascend-moe was never tested with SGLang {installed()}{where}, only with {' and '.join(tested)}"


def allow_release(asked: Options, device: str) -> str:
    """What to say of an installed release that nobody tested with such devices, once all hooks apply to it; empty if
    somebody did.

    Raises `Unsupported` with `--ascend-moe-strict-version`.
    """
    problem, flag = problem_with_release(device), FLAGS["strict_version"].flag
    if problem and asked.strict_version:
        raise Unsupported(f"{problem}; install such a release, or leave out {flag}")
    return f"{problem}. Every hook applies, and so it is served; {flag} refuses it" if problem else ""
