"""Whatever bytes a control block is made of: it is one, or an error of the package says that it is not."""

import json
import random
import time
import tracemalloc

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.exchange.control.blocks import Block, ExpertPlacement, Hello, PrefillPlan, decode, encode
from sglang_ascend_moe.exchange.control.cores import workers_of
from sglang_ascend_moe.exchange.control.expert_placement import refuse_differences, refuse_unservable
from sglang_ascend_moe.exchange.control.instance import instance_of, require_pair, unsealed
from sglang_ascend_moe.exchange.control.rendezvous import refuse_different_options
from sglang_ascend_moe.exchange.control.secret import CHALLENGE_BYTES, Secret
from sglang_ascend_moe.exchange.schedules.prefill import plan_rounds
from tests.security.drawn_blocks import BLOCKS, INSTANCE, KINDS, SESSION, mutated

INPUTS = {
    "ci": pytest.param(100_000, id="100000"),
    "nightly": pytest.param(1_000_000, id="1000000", marks=pytest.mark.nightly),
}
PER_EXAMPLE = 1000
MOST_BYTES = 64 << 20
"""That reading a block may take: sixty-four times the largest block."""
MOST_SECONDS = 1.0
"""Of this process's CPU time, which other load does not lengthen, for one input of a few hundred bytes."""

SECRET = Secret(bytes(32))
OTHERS = INSTANCE, msgspec.structs.replace(INSTANCE, role="decode")


def use(block: object) -> None:
    """What a rank does with a block that it has read, beside its own."""
    match block:
        case Hello():
            refuse_different_options([block, block])
            workers_of([block, block])
        case PrefillPlan():
            plan_rounds([block] * 4, 64, 8, 4096)
        case ExpertPlacement():
            refuse_differences([block, block])
            refuse_unservable(block, 2)


def read_block(data: bytes, kind: type[Block], chance: random.Random) -> None:
    # Now and then as something that it is not.
    asked = chance.choice(KINDS) if chance.random() < 0.1 else kind
    use(decode(data, asked, chance.choice((None, SESSION))))


def read_instance(data: bytes, _kind: type[Block], chance: random.Random) -> None:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return
    if chance.random() < 0.5:
        unsealed(SECRET, {"instance": said, "seal": "0" * 64}, bytes(CHALLENGE_BYTES), "it")
    require_pair(instance_of(said, "it"), OTHERS[1])


def attack(read, kind: type[Block], valid: bytes, seed: int, inputs: int) -> None:
    chance = random.Random(seed)
    # From here on, for hypothesis takes memory of its own when it begins.
    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(inputs):
        data = chance.randbytes(chance.randrange(200)) if number % 8 == 7 else mutated(valid, chance)
        begun = time.process_time()
        try:
            read(data, kind, chance)
        except AscendMoeError:
            pass
        except Exception as error:
            error.add_note(f"the input was {data.hex()}")
            raise
        assert time.process_time() - begun < MOST_SECONDS, data.hex()
    _, most = tracemalloc.get_traced_memory()
    assert most - before < MOST_BYTES, f"{most - before} bytes were taken"


def fuzz(read, valid: st.SearchStrategy[tuple[type[Block], bytes]], inputs: int) -> None:
    @settings(
        max_examples=inputs // PER_EXAMPLE,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(valid=valid, seed=st.integers(0, 2**32 - 1))
    def holds(valid: tuple[type[Block], bytes], seed: int) -> None:
        attack(read, *valid, seed, PER_EXAMPLE)

    tracemalloc.start()
    try:
        holds()
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("inputs", INPUTS.values())
def test_any_bytes_are_a_block_or_refused(inputs: int):
    fuzz(read_block, st.one_of(*BLOCKS.values()).map(lambda block: (type(block), encode(block))), inputs)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("inputs", [pytest.param(10_000, id="10000"), INPUTS["nightly"]])
def test_any_answer_is_an_instance_or_refused(inputs: int):
    texts = [(Block, json.dumps(msgspec.to_builtins(instance)).encode()) for instance in OTHERS]
    fuzz(read_instance, st.sampled_from(texts), inputs)
