"""Relay-buffer-free expert-parallel communication for SGLang on Ascend NPUs, and on machines without accelerator."""

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
from sglang_ascend_moe.exchange import Exchange
from sglang_ascend_moe.schedules.rows import ExpertRows

__all__ = [
    "AscendMoeError",
    "CaptureRefused",
    "Corruption",
    "Exchange",
    "ExpertRows",
    "InvalidInput",
    "PeerLost",
    "PeerTimeout",
    "ProtocolMismatch",
    "SessionPoisoned",
    "Unsupported",
    "WindowTooSmall",
]
