"""Releases of SGLang that tests have served, and what becomes of another one to which all hooks apply."""

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.options import FLAGS, Options

SERVED = ("0.5.23",)


def problem_with_release() -> str:
    """That the installed SGLang is none of `SERVED`; empty if it is one."""
    from sglang.version import __version__ as version

    if version in SERVED:
        return ""
    return f"--ascend-moe was never tested with SGLang {version}, only with {' and '.join(SERVED)}"


def allow_release(asked: Options) -> str:
    """What to say of an installed release that nobody tested, once all hooks apply to it; empty if one did.

    Raises `Unsupported` with `--ascend-moe-strict-version`.
    """
    problem, flag = problem_with_release(), FLAGS["strict_version"].flag
    if problem and asked.strict_version:
        raise Unsupported(f"{problem}; install such a release, or leave out {flag}")
    return f"{problem}. Every hook applies, and so it is served; {flag} refuses it" if problem else ""
