"""What the kernels cannot serve is refused by name when an exchange is created; the unified buffer is known exactly."""

from __future__ import annotations

import pytest

from sglang_ascend_moe.errors import Unsupported
from tests.exchange.pool import Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange

from .host_model import REPOSITORY, on_model

PAGE = REPOSITORY / "docs" / "ascend-kernels.md"
UNIFIED_BUFFER_BYTES = 184 * 1024 - 256


def compare_buffers(rank: Rank, library: str, cores: int, scenario: Scenario, options: dict[str, str]) -> None:
    with (
        on_model(library, cores) as model,
        open_exchange("windows", rank, scenario, **options) as exchange,
    ):
        rows = exchange.dispatch(*scenario.inputs(rank.size)[rank.rank])
        measured = [max(core.ub_high_water for core in model.costs())]
        exchange.combine(rows.out.zero_(), rows)
        measured.append(max(core.ub_high_water for core in model.costs()))
        assert model.buffers(exchange.layout) == tuple(measured)


@pytest.mark.parametrize("options", [{}, {"quant": "int8"}, {"counts": "grants"}], ids=["as-is", "int8", "grants"])
@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(hidden=7168, topk=8, experts_per_rank=128),
        Scenario(hidden=16, topk=1, experts_per_rank=1),
        Scenario(hidden=16 * 37, topk=7, experts_per_rank=67),
        Scenario(hidden=8192 + 16, topk=200, dtype="fp16"),
        Scenario(hidden=4096 + 48, topk=3, dtype="fp32"),
    ],
    ids=["paper", "smallest", "odd-sizes", "longer-than-a-tile-fp16", "longer-than-a-tile-fp32"],
)
def test_the_unified_buffer_that_kernels_take_is_known_before(pools, library, scenario, options):
    pools.run(2, compare_buffers, library, 3, scenario, options)


def run_at_the_edge(rank: Rank, library: str, scenario: Scenario, quant: str | None) -> tuple[int, int, str]:
    """Finds the most experts that are not refused and runs with so many. Returns their number, the bytes of the unified
    buffer that stay free, and what is said of one more per rank."""
    with on_model(library, 48) as model:

        def objection(experts_per_rank: int) -> str:
            try:
                open_exchange(
                    "windows", rank, scenario._replace(experts_per_rank=experts_per_rank), quant=quant
                ).close()
            except Unsupported as refusal:
                return str(refusal)
            return ""

        fits, refused = 1, 8192
        while refused - fits > 1:
            middle = (fits + refused) // 2
            fits, refused = (fits, middle) if objection(middle) else (middle, refused)
        most = scenario._replace(experts_per_rank=fits)
        with open_exchange("windows", rank, most, quant=quant) as exchange:
            rows = exchange.dispatch(*most.inputs(rank.size)[rank.rank])
            taken = max(core.ub_high_water for core in model.costs())
            compute(rows, scale_by_expert, rank)
            exchange.combine(rows.out, rows)
        return fits * rank.size, UNIFIED_BUFFER_BYTES - taken, objection(refused)


@pytest.mark.parametrize("quant", [None, "int8"], ids=["as-is", "int8"])
def test_more_experts_than_the_unified_buffer_holds_are_refused_by_name(pools, library, quant):
    """With the most that are not refused the kernels run."""
    scenario = Scenario(hidden=7168, topk=8, tokens=(2, 1))
    for experts, free, objection in pools.run(2, run_at_the_edge, library, scenario, quant):
        assert f"{experts:,} experts with {quant or 'bf16'} rows" in " ".join(PAGE.read_text().split())
        # Nine buffers grow with the number of experts, by 32 bytes at most when there is one more per rank.
        assert 0 <= free < 9 * 32
        assert f"num_experts={experts + 2}" in objection
        assert "unified buffer" in objection


def be_refused(rank: Rank, library: str, options: dict[str, object]) -> str:
    with on_model(library, 2), pytest.raises(Unsupported) as caught:
        open_exchange("windows", rank, Scenario(), **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"verify": True}, "verify=False"),
        ({"layout": "padded", "distinct_topk": True}, "layout='compact'"),
        ({"counts": "grants", "num_experts": 20_000}, "counts='matrix'"),
    ],
    ids=["verify", "padded", "experts-of-grants"],
)
def test_what_the_kernels_lack_is_refused_when_an_exchange_is_created(pools, library, options, words):
    assert all(words in text for text in pools.run(2, be_refused, library, options))
