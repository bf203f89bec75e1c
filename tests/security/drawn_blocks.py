"""Valid control blocks, drawn, and what can be done to their bytes."""

import random
from typing import Any

import msgspec
from hypothesis import strategies as st

from sglang_ascend_moe.exchange.control.blocks import (
    Block,
    ExpertPlacement,
    Greeting,
    Hello,
    PrefillPlan,
    Reachable,
    WindowHandle,
)
from sglang_ascend_moe.exchange.control.instance import Instance
from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.exchange.control.post_mortem import PostMortem
from sglang_ascend_moe.exchange.control.trace_file import TraceHeader
from sglang_ascend_moe.windows.layout import ExchangeParameters

SESSION = b"session of tests"
KINDS: tuple[type[Block], ...] = (
    Hello, Reachable, Greeting, WindowHandle, PrefillPlan, ExpertPlacement, PostMortem, TraceHeader,
)  # fmt: skip

# Numbers at the edges of what msgpack, C and the fields of blocks hold.
EDGES = [bytes([0xCF]) + value.to_bytes(8) for value in (0, 2**31, 2**32 - 1, 2**32, 2**48, 2**63, 2**64 - 1)]
EDGES += [bytes([0xD3]) + value.to_bytes(8, signed=True) for value in (-1, -(2**31), -(2**63))]
EDGES += [
    bytes([0xCB]) + bytes.fromhex(value) for value in ("7ff8000000000000", "7ff0000000000000", "8000000000000000")
]
# Arrays, maps, strings and bytes that announce more than follows.
EDGES += [bytes([kind]) + b"\xff\xff\xff\xff" for kind in (0xDD, 0xDF, 0xDB, 0xC6, 0xC9)]
NESTED = b"\x91" * 5000

small = st.integers(0, 2**16)
ranks = st.integers(0, 7)
digests = st.binary(min_size=16, max_size=16)
common: dict[str, Any] = {"session": st.just(SESSION), "rank": ranks}
parameters = st.builds(
    ExchangeParameters, ranks=st.just(8), num_experts=st.integers(1, 32).map(lambda n: 8 * n), hidden=small,
    max_tokens=small, topk=st.integers(1, 8), window_bytes=st.none() | small, timeout_s=st.floats(0.1, 60.0),
)  # fmt: skip
BLOCKS: dict[type[Block], st.SearchStrategy[Block]] = {
    Hello: st.builds(
        Hello, **common, layout_version=st.integers(0, 9), parameters=parameters, process=st.integers(1, 2**31 - 1),
        address=st.binary(max_size=64), cores=st.lists(small, max_size=9), workers=st.integers(0, 256),
        node=st.none() | ranks, machine=st.builds(Machine, identity=digests, network=digests, name=st.text(max_size=9)),
    ),
    Reachable: st.builds(Reachable, **common, host=st.text(max_size=9), port=st.integers(1, 2**16 - 1)),
    Greeting: st.builds(Greeting, **common, purpose=st.text(max_size=9), seal=st.binary(max_size=32)),
    WindowHandle: st.builds(
        WindowHandle, **common, total_bytes=small, layout_digest=digests
    ),
    PrefillPlan: st.builds(
        PrefillPlan, **common, tokens=st.integers(0, 200), chunk_tokens=st.integers(1, 64),
        rows=st.lists(st.lists(small, min_size=4, max_size=4), max_size=8),
    ),
    ExpertPlacement: st.builds(
        ExpertPlacement, **common, change=small, epochs=st.lists(small, max_size=4), logical_experts=st.integers(1, 16),
        layers=st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 15), max_size=24), max_size=4),
    ),
    PostMortem: st.builds(
        PostMortem, **common, ranks=st.integers(1, 8), nodes=st.lists(ranks, max_size=8), process=small,
        time=st.floats(0, 2e9),
        outcome=st.text(max_size=9), message=st.text(max_size=40), culprit=ranks, step=st.text(max_size=9), epoch=small,
        missing=st.lists(ranks, max_size=8), waited_s=st.lists(st.floats(0, 9), max_size=8),
        received=st.lists(st.lists(small, max_size=4), max_size=4),
    ),
    TraceHeader: st.builds(
        TraceHeader, **common, release=st.text(max_size=9), parameters=parameters, stage=st.none() | ranks,
        process=small, machine=st.builds(Machine, identity=digests, network=digests, name=st.text(max_size=9)),
        capacity=st.integers(1, 1 << 24), monotonic_ns=small, realtime_ns=small,
    ),
}  # fmt: skip
INSTANCE = Instance(
    role="prefill", model="/models/a", model_digest="0" * 32, dtype="bfloat16", quantisation="none", row_quant="none",
    kv_dtype="bfloat16", kv_layout="MHATokenToKVPool", page_size=1, kv_token_bytes=1024, tp_size=2, dp_size=1,
    ep_size=2, mixed_sizes=False,
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four things done to it: bytes changed, removed, repeated, inserted, or cut off."""
    spoiled = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(spoiled) + 1)
        match chance.randrange(7):
            case 0 if place < len(spoiled):
                spoiled[place] = chance.randrange(256)
            case 1 if place < len(spoiled):
                spoiled[place] ^= 1 << chance.randrange(8)
            case 2:
                del spoiled[place : place + chance.randint(1, 8)]
            case 3:
                spoiled[place:place] = spoiled[place : place + chance.randint(1, 64)]
            case 4:
                spoiled[place : place + chance.choice((1, 9))] = chance.choice(EDGES)
            case 5:
                del spoiled[place:]
            case 6:
                spoiled[place:place] = NESTED if chance.random() < 0.01 else chance.randbytes(chance.randint(1, 16))
    return bytes(spoiled)


def with_field(block: Block, **changed: Any) -> bytes:
    """The bytes of `block` with fields that it would not be made with."""
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(msgspec.msgpack.encode(block)), **changed})
