"""What a control block must not say is refused by name."""

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import (
    MAX_BLOCK_BYTES,
    PROTOCOL_VERSION,
    ExpertPlacement,
    Greeting,
    Hello,
    PrefillPlan,
    Reachable,
    WindowHandle,
    decode,
    encode,
)
from sglang_ascend_moe.exchange.control.expert_placement import refuse_unservable
from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.exchange.control.rendezvous import refuse_different_options
from sglang_ascend_moe.exchange.schedules.prefill import plan_rounds
from sglang_ascend_moe.windows.layout import MAX_RANKS, ExchangeParameters, plan_window
from tests.security.drawn_blocks import NESTED, SESSION, with_field

PARAMETERS = ExchangeParameters(ranks=2, num_experts=8, hidden=64, max_tokens=16, topk=2)
HELLO = Hello(
    session=SESSION, rank=1, layout_version=1, parameters=PARAMETERS, process=7, address=b"\0a", cores=[0], workers=1,
    node=None, machine=Machine(bytes(16), bytes(16), "here"),
)  # fmt: skip
REACHABLE = Reachable(session=SESSION, rank=1, host="10.0.0.1", port=5000)
GREETING = Greeting(session=SESSION, rank=1, purpose="lifeline", seal=bytes(32))
HANDLE = WindowHandle(session=SESSION, rank=1, total_bytes=4096, layout_digest=plan_window(PARAMETERS).digest())
PLAN = PrefillPlan(session=SESSION, rank=1, tokens=3, chunk_tokens=1, rows=[[1, 1]] * 3)
PLACEMENT = ExpertPlacement(session=SESSION, rank=0, change=0, epochs=[0], logical_experts=4, layers={0: [0, 1, 2, 3]})


@pytest.mark.parametrize(
    ("block", "changed", "named"),
    [
        pytest.param(HELLO, {"rank": MAX_RANKS}, "rank", id="rank past the end"),
        pytest.param(HELLO, {"rank": -1}, "rank", id="negative rank"),
        pytest.param(HELLO, {"process": 2**40}, "process", id="no process id"),
        pytest.param(HELLO, {"cores": [-1]}, "cores", id="negative core"),
        pytest.param(HELLO, {"workers": 10**6}, "workers", id="a million workers"),
        pytest.param(HELLO, {"address": b"x" * 65}, "address", id="long address"),
        pytest.param(HELLO, {"node": -1}, "node", id="negative node"),
        pytest.param(
            HELLO, {"machine": {"identity": b"short", "network": bytes(16), "name": ""}}, "identity", id="no machine"
        ),
        pytest.param(REACHABLE, {"port": 1 << 16}, "port", id="port past the end"),
        pytest.param(REACHABLE, {"host": "x" * 300}, "host", id="long host"),
        pytest.param(GREETING, {"seal": bytes(33)}, "seal", id="long seal"),
        pytest.param(HELLO, {"surprise": 1}, "surprise", id="unknown field"),
        pytest.param(HELLO, {"type": "PrefillPlan"}, "PrefillPlan", id="another kind"),
        pytest.param(HELLO, {"session": b"short"}, "session", id="short session"),
        pytest.param(PLAN, {"rows": [[-1, 1]] * 3}, "rows", id="negative count"),
        pytest.param(PLAN, {"rows": [[2**32, 1]] * 3}, "rows", id="count past 32 bits"),
        pytest.param(PLAN, {"tokens": -3}, "tokens", id="negative tokens"),
        pytest.param(PLAN, {"chunk_tokens": 0}, "chunk_tokens", id="empty chunks"),
        pytest.param(PLACEMENT, {"layers": {0: [2**16]}}, "layers", id="expert past the end"),
        pytest.param(PLACEMENT, {"layers": {0: [-1]}}, "layers", id="negative expert"),
        pytest.param(HANDLE, {"total_bytes": -1}, "total_bytes", id="negative size"),
        pytest.param(HANDLE, {"layout_digest": b"x"}, "layout_digest", id="short digest"),
    ],
)
def test_a_field_out_of_range_is_refused_by_its_name(block, changed, named):
    with pytest.raises(ProtocolMismatch, match=f"{type(block).__name__}.*{named}"):
        decode(with_field(block, **changed), type(block), SESSION)


@pytest.mark.parametrize("block", [HELLO, HANDLE, PLAN, PLACEMENT], ids=lambda block: type(block).__name__)
class TestEveryKind:
    def test_an_old_protocol_is_refused_naming_both(self, block):
        with pytest.raises(ProtocolMismatch, match=f"protocol 0.*protocol {PROTOCOL_VERSION}"):
            decode(with_field(block, protocol=0), type(block), SESSION)

    def test_a_foreign_session_is_refused_naming_both(self, block):
        foreign = msgspec.structs.replace(block, session=b"another session!")
        with pytest.raises(ProtocolMismatch, match=f"{foreign.session.hex()}.*{SESSION.hex()}"):
            decode(encode(foreign), type(block), SESSION)

    def test_every_truncation_is_refused(self, block):
        data = encode(block)
        for length in range(len(data)):
            with pytest.raises(ProtocolMismatch, match=type(block).__name__):
                decode(data[:length], type(block), SESSION)

    def test_more_bytes_than_a_block_are_refused(self, block):
        with pytest.raises(ProtocolMismatch, match=type(block).__name__):
            decode(encode(block) + b"\0", type(block), SESSION)

    def test_an_oversized_block_is_not_even_read(self, block):
        with pytest.raises(ProtocolMismatch, match=f"exceeds {MAX_BLOCK_BYTES}"):
            decode(encode(block).ljust(MAX_BLOCK_BYTES + 1, b"\0"), type(block), SESSION)

    def test_a_deeply_nested_block_is_refused(self, block):
        with pytest.raises(ProtocolMismatch, match=type(block).__name__):
            decode(NESTED, type(block), SESSION)


def test_text_that_is_none_is_refused():
    with pytest.raises(ProtocolMismatch, match="Hello"):
        decode(encode(HELLO).replace(b"bfloat16", b"\xffloat16"), Hello, SESSION)


def test_a_plan_with_more_tokens_than_agreed_is_refused():
    huge = msgspec.structs.replace(PLAN, tokens=2**32 - 1, chunk_tokens=2**32 - 1, rows=[[2**32 - 1] * 2])
    with pytest.raises(ProtocolMismatch, match=r"4294967295.* 16"):
        plan_rounds([PLAN, huge], capacity=8, rows_per_token=2, max_tokens=16)


def test_a_plan_that_does_not_cover_its_tokens_is_refused():
    with pytest.raises(ProtocolMismatch, match=r"\b3 .* 9\b"):
        plan_rounds([PLAN, msgspec.structs.replace(PLAN, tokens=9)], capacity=8, rows_per_token=2, max_tokens=16)


def test_another_models_parameters_are_refused_naming_both():
    other = msgspec.structs.replace(HELLO, rank=0, parameters=msgspec.structs.replace(PARAMETERS, hidden=128))
    with pytest.raises(ProtocolMismatch, match=r"hidden.*rank 0 has 128.*rank 1 has 64"):
        refuse_different_options([other, HELLO])


def test_an_expert_that_no_model_has_is_refused():
    with pytest.raises(InvalidInput, match="there is no expert 9"):
        refuse_unservable(msgspec.structs.replace(PLACEMENT, layers={0: [0, 1, 2, 3, 9, 9]}), 2)
