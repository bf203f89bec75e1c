"""Hooks into SGLang: what one is, how they are applied, and what became of each.

A hook is a function of this package that runs before, after, around or in place of a function of SGLang. The tables of
the folders (`*_hooks.py`) list them; `plugin` puts the tables together. SGLang only logs a hook that fails, and then
serves without it. Here every hook can be asked for its state, and `require_all` raises.
"""

import enum
import inspect
import pkgutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.host_platform import HOST_PLATFORM
from sglang_ascend_moe.serving.signatures import is_awaited, misfit, signature_of


class HookKind(enum.Enum):
    """How a hook changes its target. All but `SET` and `ADD` are the kinds of SGLang's HookRegistry."""

    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"
    # Assigns an attribute. HookRegistry cannot: it wraps callables, and replacing a class there replaces it everywhere.
    SET = "set"
    # Assigns an attribute that SGLang does not have.
    ADD = "add"


class Where(enum.Enum):
    """The machines that a hook is for."""

    ALWAYS = "always"
    HOST = "host"
    NPU = "npu"
    HOST_AND_NPU = "host and npu"


class Process(enum.Enum):
    """The process whose work a hook changes. Hooks are applied in every process of a server: SGLang's processes import
    nearly the same modules, and an engine that is forked instead of spawned inherits them."""

    LAUNCHER = "launcher"
    WORKER = "worker"


class SglangFault(NamedTuple):
    """A fault that SGLang has without this package too, named by the reason of the hook that mends it.

    discussed: the issue or pull request of SGLang that is about it (`#31908`); empty if none is known.
    mended_in: the first version of SGLang without it, of which on the hook is left out; empty if none is known.
    """

    discussed: str = ""
    mended_in: str = ""

    def until(self) -> str:
        """When the hook may go."""
        when = f"SGLang {self.mended_in}" if self.mended_in else "SGLang mends it"
        return f"until {when} ({self.discussed})" if self.discussed else f"until {when}"


class Hook(NamedTuple):
    """One row of a table. `target` is a dotted path; `value` is the function, or what `SET` and `ADD` assign.

    mends: of a hook that any user of SGLang could want; None of one that only this package needs. since: the first
    release of SGLang that needs the hook; empty if all do. until: the first one that does not need it any more; empty
    if none.
    """

    target: str
    kind: HookKind
    value: Any
    reason: str
    where: Where = Where.ALWAYS
    process: Process = Process.WORKER
    mends: SglangFault | None = None
    since: str = ""
    until: str = ""


class State(enum.Enum):
    """What became of a hook in this process."""

    APPLIED = "applied"
    NOT_APPLICABLE = "not applicable"
    FAILED = "failed"


class HookState(NamedTuple):
    """What became of one hook in this process; `detail` says why it failed or does not apply, else it is empty."""

    hook: Hook
    state: State
    detail: str = ""


_ASSIGNED = (HookKind.SET, HookKind.ADD)
_table: tuple[Hook, ...] = ()


def install(table: Sequence[Hook]) -> None:
    """Register the hooks that apply on this machine. SGLang applies them when every plugin has been run.

    A target that does not exist is no error here, because SGLang would only log it: see `require_all`.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    global _table
    _table = tuple(table)
    for hook in _table:
        if not applies(hook):
            continue
        if hook.kind not in _ASSIGNED:
            HookRegistry.register(hook.target, hook.value, HookType(hook.kind.value))
        elif not obstacle(hook):
            owner, name = _owner_of(hook)
            setattr(owner, name, hook.value)


def launcher_hook(
    target: str,
    kind: HookKind,
    value: Any,
    reason: str,
    mends: SglangFault | None = None,
    since: str = "",
    until: str = "",
) -> Hook:
    """A hook that is needed in the launcher only."""
    return Hook(target, kind, value, reason, process=Process.LAUNCHER, mends=mends, since=since, until=until)


def host_hook(
    target: str, kind: HookKind, value: Any, reason: str, mends: SglangFault | None = None, since: str = ""
) -> Hook:
    """A hook that is needed on the host platform only."""
    return Hook(target, kind, value, reason, Where.HOST, mends=mends, since=since)


def host_launcher_hook(target: str, kind: HookKind, value: Any, reason: str, mends: SglangFault | None = None) -> Hook:
    """A hook that is needed in the launcher of the host platform only."""
    return Hook(target, kind, value, reason, Where.HOST, Process.LAUNCHER, mends)


def applies(hook: Hook) -> bool:
    """Whether `hook` is meant for this machine and the installed SGLang."""
    return not _left_out(hook)


def _left_out(hook: Hook) -> str:
    """What `hook` is meant for in place of this; empty if it is meant for this."""
    if not sglang_release.reaches(hook.since):
        return f"only from SGLang {hook.since} on"
    if hook.until and sglang_release.reaches(hook.until):
        return f"only before SGLang {hook.until}"
    if hook.mends is not None and not needed_in(hook):
        return f"only {hook.mends.until()}"
    match hook.where:
        case Where.HOST:
            here = on_host()
        case Where.NPU:
            here = on_npu()
        case Where.HOST_AND_NPU:
            here = on_host() or on_npu()
        case Where.ALWAYS:
            here = True
    return "" if here else f"only for {hook.where.value}"


def needed_in(hook: Hook, release: str | None = None) -> bool:
    """Whether a release of SGLang, or else the installed one, needs `hook` on the machines that it is for."""
    ends = (hook.until, hook.mends.mended_in if hook.mends else "")
    past = any(end and sglang_release.reaches(end, release) for end in ends)
    return sglang_release.reaches(hook.since, release) and not past


def on_host() -> bool:
    """Whether SGLang runs on our host platform in this process."""
    from sglang.srt.platforms import current_platform

    return f"{type(current_platform).__module__}.{type(current_platform).__qualname__}" == HOST_PLATFORM


def on_npu() -> bool:
    """Whether SGLang runs on Ascend NPUs in this process."""
    from sglang.srt.platforms import current_platform

    if sglang_release.reaches("0.5.20"):
        return bool(current_platform.is_npu())
    # It has no platform of its own for them.
    from sglang.srt.utils import is_npu

    return not current_platform.is_out_of_tree() and bool(is_npu())


def obstacle(hook: Hook) -> str:
    """Why `hook` cannot be applied to the installed SGLang; empty if it can be, or is."""
    try:
        owner, name = _owner_of(hook)
    except (ImportError, AttributeError) as error:
        return str(error)
    if hook.kind is HookKind.ADD:
        there = getattr(owner, name, hook.value)
        return "" if there is hook.value else f"{owner.__name__} has an attribute {name!r} of its own"
    if not hasattr(owner, name):
        return f"{owner.__name__} has no attribute {name!r}"
    function = inspect.getattr_static(owner, name)
    target = signature_of(function)
    problem = "" if target is None else call_misfit(hook, target, awaited=is_awaited(function))
    return f"{name} of {owner.__name__} {problem}" if problem else ""


def call_misfit(hook: Hook, target: inspect.Signature, *, awaited: bool) -> str:
    """What the function of `hook` does not take as a target of this signature is called; empty if it takes all.

    awaited: whether SGLang awaits what the target returns.
    """
    if hook.kind in _ASSIGNED:
        return ""
    if inspect.iscoroutinefunction(hook.value) and not awaited:
        return "is not awaited"
    return misfit(inspect.signature(hook.value), target, first=hook.kind in (HookKind.AFTER, HookKind.AROUND))


def states() -> list[HookState]:
    """What became of every hook of the installed table, in its order."""
    return [_state(hook) for hook in _table]


def _state(hook: Hook) -> HookState:
    from sglang.srt.plugins.hook_registry import HookRegistry

    if reason := _left_out(hook):
        return HookState(hook, State.NOT_APPLICABLE, reason)
    if problem := obstacle(hook):
        return HookState(hook, State.FAILED, problem)
    owner, name = _owner_of(hook)
    if hook.kind in _ASSIGNED:
        applied = vars(owner).get(name) is hook.value
    else:
        applied = hook.target in HookRegistry._patched
    return HookState(hook, State.APPLIED) if applied else HookState(hook, State.FAILED, "SGLang did not apply it")


def failure() -> str:
    """The hooks that should be active in this process and are not, as one message; empty if there is none."""
    failed = [item for item in states() if item.state is State.FAILED]
    if not failed:
        return ""
    names = "; ".join(f"{item.hook.target} ({item.detail}), needed because {item.hook.reason}" for item in failed)
    return (
        f"--ascend-moe cannot be active with SGLang {sglang_release.installed()}: {len(failed)} of {len(_table)} hooks"
        f" did not apply: {names}. Install SGLang {sglang_release.TESTED[-1]}, or serve without --ascend-moe."
    )


def require_all() -> None:
    """Raise `Unsupported`, naming every hook that should be active in this process and is not."""
    if problem := failure():
        raise Unsupported(problem)


def _owner_of(hook: Hook) -> tuple[Any, str]:
    """The module or class that holds the target, and the target's name in it. Raises ImportError, AttributeError."""
    path, _, name = hook.target.rpartition(".")
    return pkgutil.resolve_name(path), name
