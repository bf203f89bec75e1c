"""Relay-buffer-free expert-parallel communication for SGLang on Ascend NPUs, and on machines without accelerator.

`Exchange` and what belongs to it bring torch, so they are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sglang_ascend_moe.errors import (
    AscendMoeError,
    CaptureRefused,
    Corruption,
    InvalidInput,
    PeerLost,
    PeerTimeout,
    ProtocolMismatch,
    SessionPoisoned,
    Unsupported,
    WindowTooSmall,
)

if TYPE_CHECKING:
    from sglang_ascend_moe.exchange.exchange import Exchange
    from sglang_ascend_moe.exchange.rank_options import RankOptions
    from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
    from sglang_ascend_moe.windows.layout import ExchangeParameters

__all__ = [
    "AscendMoeError",
    "CaptureRefused",
    "Corruption",
    "Exchange",
    "ExchangeParameters",
    "ExpertRows",
    "InvalidInput",
    "PeerLost",
    "PeerTimeout",
    "ProtocolMismatch",
    "RankOptions",
    "SessionPoisoned",
    "Unsupported",
    "WindowTooSmall",
]

_IMPORTED_WHEN_ASKED_FOR = {
    "Exchange": "exchange.exchange",
    "ExchangeParameters": "windows.layout",
    "ExpertRows": "exchange.schedules.rows",
    "RankOptions": "exchange.rank_options",
}


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_IMPORTED_WHEN_ASKED_FOR[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
