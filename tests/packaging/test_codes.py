"""docs/codes.md is what the source files say, and no code has two meanings."""

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, PeerFault, PeerLost, code_of
from sglang_ascend_moe.native.codes import Region, Result, Step
from sglang_ascend_moe.native.faults import Fault, fault_error
from sglang_ascend_moe.serving.launcher import exit_codes
from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window
from tests.packaging import codes


def test_the_page_is_up_to_date():
    assert codes.PAGE.read_text() == codes.page(), "run `python -m tests.packaging.codes`"


def test_every_exception_has_a_code_of_its_own():
    family = [AscendMoeError, PeerFault, *codes.exceptions()]
    assert len({kind.code for kind in family}) == len(family)


def test_every_exit_code_is_explained():
    assert [code for code, _ in codes.exits()] == [value for name, value in vars(exit_codes).items() if name.isupper()]


@pytest.mark.parametrize(
    ("error", "code"),
    [(PeerLost("rank 1 has died"), "PEER_LOST"), (InvalidInput("x"), "INVALID_INPUT"), (ValueError("x"), "")],
    ids=["of a peer", "of this rank", "of something else"],
)
def test_the_code_of_an_exception(error: Exception, code: str):
    assert code_of(error) == code


@pytest.mark.parametrize("result", list(Result)[1:], ids=lambda result: result.name)
def test_what_poisons_the_exchange_is_an_exception_that_does_not_keep_it(result: Result):
    layout = plan_window(ExchangeParameters(ranks=2, num_experts=4, hidden=16, max_tokens=2, topk=2))
    fault = Fault(
        result, rank=0, culprit=1, step=Step.COUNTS, epoch=1, cause=1, detail=0, region=Region.NONE,
        missing=(), refusal="",
    )  # fmt: skip
    assert fault_error(fault, layout).keeps_exchange == (result < Result.PEER_LOST)
