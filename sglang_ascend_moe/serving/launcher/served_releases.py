"""What a release of SGLang is not served with, and what becomes of one that nobody tested."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.options import FLAGS, Options
from sglang_ascend_moe.serving.sglang_release import DRAFTED, TESTED, installed, reaches


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
        lambda settings: (settings.page_size or 1) > 1,
        "0.5.22",
        "earlier releases find pages of several tokens with a Triton kernel",
    ),
    LaterFeature(
        "--tokenizer-worker-num",
        lambda settings: settings.tokenizer_worker_num > 1,
        "0.5.23",
        "in earlier releases further processes for HTTP load no plugins, and would not check requests for the ranks",
    ),
)


def refuse_later_features(settings: Any) -> None:
    """Raise `Unsupported`, naming the flag, for the first that the installed release is not served with."""
    for later in LATER_FEATURES:
        if not reaches(later.since) and later.found(settings):
            raise Unsupported(
                f"{later.flag} needs SGLang {later.since} with --ascend-moe: {later.cause}. Install that release in"
                f" place of {installed()}, or leave the flag out"
            )


def problem_with_release() -> str:
    """That the installed SGLang is none of `TESTED`; empty if it is one."""
    if installed() in TESTED:
        return ""
    return f"--ascend-moe was never tested with SGLang {installed()}, only with {' and '.join(TESTED)}"


def allow_release(asked: Options) -> str:
    """What to say of an installed release that nobody tested, once all hooks apply to it; empty if one did.

    Raises `Unsupported` with `--ascend-moe-strict-version`.
    """
    problem, flag = problem_with_release(), FLAGS["strict_version"].flag
    if problem and asked.strict_version:
        raise Unsupported(f"{problem}; install such a release, or leave out {flag}")
    return f"{problem}. Every hook applies, and so it is served; {flag} refuses it" if problem else ""
