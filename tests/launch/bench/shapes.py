"""Cases small enough to be measured in a test."""

import msgspec

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.records import OPS, Record

SMALL = Case(
    phase="decode", ranks=2, hidden=48, tokens=7, topk=3, experts=8, dtype="bf16", routing="uniform", seed=5
)  # fmt: skip


def case(**changes: object) -> Case:
    """SMALL with some values changed."""
    return msgspec.structs.replace(SMALL, **changes)


def records(times: dict[str, tuple[float, float]], of: Case = SMALL) -> list[Record]:
    """Records of `of` in which each variant took so many microseconds for dispatch and combine."""
    return [
        Record(
            **msgspec.structs.asdict(of), op=op, variant=variant, median_us=time, p10_us=time * 0.9, p90_us=time * 1.5,
            iterations=3, checked=True,
        )
        for variant, both in times.items()
        for op, time in zip(OPS, both, strict=True)
    ]  # fmt: skip


def absent(variant: str, reason: str, of: Case = SMALL) -> list[Record]:
    """Records that say why `variant` was not measured."""
    return [
        Record(
            **msgspec.structs.asdict(of), op=op, variant=variant, median_us=None, p10_us=None, p90_us=None,
            iterations=0, checked=False, absent=reason,
        )
        for op in OPS
    ]  # fmt: skip
