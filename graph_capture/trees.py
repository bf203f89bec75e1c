"""Arguments and results of operators as trees: tensors and Python values in tuples, lists and dictionaries.

Named tuples are tuples, those that torch returns too.

torch can do the same (`torch.utils._pytree`), for every kind of container, at up to eight times the cost: a quarter of
a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def leaves(tree: Any) -> list[Any]:
    """Everything in `tree` that is no tuple, list or dictionary. Instances of subclasses are leaves too, but for named
    tuples and other kinds of tuples."""
    found: list[Any] = []
    _collect((tree,), found)
    return found


def _collect(items: Iterable[Any], found: list[Any]) -> None:
    for item in items:
        kind = type(item)
        if kind is list or isinstance(item, tuple):
            _collect(item, found)
        elif kind is dict:
            _collect(item.values(), found)
        else:
            found.append(item)


def mapped(tree: Any, wanted: type, function: Callable[[Any], Any]) -> Any:
    """`tree` with `function` of every leaf that is an instance of `wanted` in its place."""
    kind = type(tree)
    if kind is tuple:
        return tuple([mapped(item, wanted, function) for item in tree])
    if kind is list:
        return [mapped(item, wanted, function) for item in tree]
    if kind is dict:
        return {name: mapped(item, wanted, function) for name, item in tree.items()}
    if isinstance(tree, tuple):
        items = [mapped(item, wanted, function) for item in tree]
        return kind(*items) if hasattr(tree, "_fields") else kind(items)
    return function(tree) if isinstance(tree, wanted) else tree
