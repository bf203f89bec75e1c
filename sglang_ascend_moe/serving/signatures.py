"""Whether a function of ours can stand where a hook puts it: it must take what SGLang passes to the target."""

import inspect
from inspect import Parameter, Signature

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def misfit(function: Signature, target: Signature, *, first: bool) -> str:
    """What `function` does not take as `target` is called, in a few words; empty if it takes everything.

    first: the hook passes something before the arguments of the target: its result, or the target itself.

    A parameter of the function has the name that it has in the target, because SGLang may pass it by name. Exempt are
    `self`, `cls` and what the function or the target takes by position only.
    """
    own = list(function.parameters.values())
    if first and own and own[0].kind in _BY_POSITION:
        own = own[1:]
    kinds = {parameter.kind for parameter in own}
    places = [parameter for parameter in own if parameter.kind in _BY_POSITION]
    names = {parameter.name for parameter in own if parameter.kind is Parameter.KEYWORD_ONLY}
    for parameter in target.parameters.values():
        if parameter.kind in _BY_POSITION and places:
            mine = places.pop(0)
            if not _same(mine, parameter):
                return f"has `{parameter.name}` where `{mine.name}` is expected"
        elif parameter.kind in _BY_POSITION and Parameter.VAR_POSITIONAL not in kinds:
            return f"has one more parameter, `{parameter.name}`"
        elif parameter.kind is Parameter.KEYWORD_ONLY:
            if parameter.name not in names and Parameter.VAR_KEYWORD not in kinds:
                return f"has one more parameter, `{parameter.name}`"
            names.discard(parameter.name)
    theirs = {parameter.kind for parameter in target.parameters.values()}
    required = [parameter.name for parameter in places if parameter.default is Parameter.empty] + sorted(names)
    if required and not theirs & {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return f"has no parameter `{required[0]}`"
    return ""


def _same(mine: Parameter, theirs: Parameter) -> bool:
    if Parameter.POSITIONAL_ONLY in (mine.kind, theirs.kind) or theirs.name in ("self", "cls"):
        return True
    return mine.name == theirs.name


def signature_of(function: object) -> Signature | None:
    """The signature of a function as it stands in its class, with `self` or `cls`; None if Python knows none."""
    raw = _raw(function)
    if not callable(raw):
        return None
    try:
        return inspect.signature(raw)
    except (TypeError, ValueError):
        return None


def is_awaited(function: object) -> bool:
    """Whether a function as it stands in its class or module is a coroutine's; one that a hook wraps counts itself."""
    raw = _raw(function)
    return callable(raw) and inspect.iscoroutinefunction(inspect.unwrap(raw))


def _raw(function: object) -> object:
    return function.__func__ if isinstance(function, staticmethod | classmethod) else function
