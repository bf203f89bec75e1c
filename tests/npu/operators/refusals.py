"""What the emulated NPU says about what it does not have."""

from __future__ import annotations


class NotEmulated(RuntimeError):
    """An operator of a real NPU, or a form of one, that the emulated NPU has not."""

    def __init__(self, operator: str, form: str = "") -> None:
        super().__init__(f"the emulated NPU has no {operator}" + (f" with {form}" if form else ""))


class MissingName(AttributeError):
    """The same for a name that is looked up, so that `hasattr` says no."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the emulated NPU has no {name}")


class WrongArguments(ValueError):
    """Arguments with which a real operator would fail, or read what it must not."""

    def __init__(self, operator: str, problem: str) -> None:
        super().__init__(f"{operator} on the emulated NPU: {problem}")
