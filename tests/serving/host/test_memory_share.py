"""The memory of a host is divided so that all ranks fit, and what cannot fit is refused with numbers and flags."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.host.memory_share import (
    FLAGS,
    GIB,
    HTTP_PROCESS,
    LEAST_TOKENS,
    MIB,
    RESERVE_LEAST,
    MemoryLeft,
    RankNeeds,
    Scheduling,
    ServerEstimate,
    division_in_words,
    gib,
    http_bytes,
    keys_values_bytes,
    memory_left,
    rank_needs,
    refuse_server_that_does_not_fit,
    refuse_too_few_tokens,
)
from sglang_ascend_moe.serving.host.reservations import Outstanding
from sglang_ascend_moe.serving.machine_limits import read_limits
from sglang_ascend_moe.serving.options import FLAGS as OPTIONS

SCHEDULING = Scheduling(running=8, context=2048, vocabulary=1000)
NEEDS = RankNeeds(windows=100 * MIB, graphs=50 * MIB, tables=MIB, working=256 * MIB)
ESTIMATE = ServerEstimate(
    ranks=2, weights=4 * GIB, processes=GIB, needs=NEEDS, token=1024, scheduling=SCHEDULING,
)  # fmt: skip
sizes = st.integers(0, 2**44)


def left(free: int, *others: int, asked: int | None = None) -> MemoryLeft:
    return MemoryLeft(
        free, "this machine", tuple(Outstanding("other", 7 + n, size) for n, size in enumerate(others)), asked
    )


@given(free=sizes, others=st.lists(sizes, max_size=4), asked=st.none() | sizes, ranks=st.integers(1, 64))
def test_what_all_ranks_take_leaves_the_reserve_and_what_others_reserved(free, others, asked, ranks):
    found = left(free, *others, asked=asked)
    taken = ranks * (keys_values_bytes(found, ranks, NEEDS, None) + NEEDS.total)
    assert 0 <= taken <= found.usable
    assert found.usable == 0 or found.usable + found.reserve + sum(others) <= free
    assert asked is None or found.usable <= asked


@pytest.mark.parametrize(("processes", "taken"), [(1, 0), (2, 2 * HTTP_PROCESS), (5, 5 * HTTP_PROCESS)])
def test_processes_for_http_have_their_memory_before_keys_and_values(processes: int, taken: int):
    found = left(20 * GIB)._replace(http=http_bytes(processes))
    assert left(20 * GIB).usable - found.usable == taken
    assert ("for the processes of --tokenizer-worker-num" in found.in_words()) == bool(taken)


@given(free=sizes, ranks=st.integers(1, 8), fraction=st.floats(0, 1))
def test_a_fraction_only_takes_from_keys_and_values(free, ranks, fraction):
    found = left(free)
    whole = keys_values_bytes(found, ranks, NEEDS, None)
    part = keys_values_bytes(found, ranks, NEEDS, fraction)
    assert part <= whole
    assert keys_values_bytes(found, ranks, NEEDS, 1.0) == whole


def test_the_reserve_is_a_part_of_what_is_left_and_never_less_than_stated():
    assert left(100 * GIB).reserve == 5 * GIB
    assert left(GIB).reserve == RESERVE_LEAST


@pytest.mark.parametrize(
    ("machine", "container", "free", "place"),
    [
        (8 * GIB, None, 8 * GIB, "this machine"),
        (8 * GIB, 2 * GIB, 2 * GIB, "the container (control group)"),
        (2 * GIB, 8 * GIB, 2 * GIB, "this machine"),
    ],
    ids=["no container", "container has less", "machine has less"],
)
def test_the_lesser_of_machine_and_container_counts(machine, container, free, place):
    limits = msgspec.structs.replace(read_limits(), memory_available=machine, container_available=container)
    found = memory_left(limits, [])
    assert (found.free, found.place) == (free, place)


def test_needs_grow_with_requests_context_and_vocabulary():
    needs = rank_needs(SCHEDULING, windows=5, graphs=6)
    assert (needs.windows, needs.graphs) == (5, 6)
    assert needs.tables == 9 * 2048 * 4
    assert rank_needs(SCHEDULING._replace(vocabulary=2000), 5, 6).working - needs.working == 8 * 1000 * 4 * 3


def test_an_estimate_counts_weights_once_and_the_rest_for_each_rank():
    tokens = min(SCHEDULING.context, LEAST_TOKENS)
    assert ESTIMATE.least == 5 * GIB + 2 * (NEEDS.total + 1024 * tokens)
    assert ESTIMATE.most == 5 * GIB + 2 * (NEEDS.total + 1024 * 8 * 2048)


def test_a_server_that_just_fits_is_not_refused():
    free = ESTIMATE.least + RESERVE_LEAST
    refuse_server_that_does_not_fit(ESTIMATE, left(free), "model")
    with pytest.raises(Unsupported):
        refuse_server_that_does_not_fit(ESTIMATE, left(free - 1), "model")


@pytest.mark.parametrize(
    ("found", "named"),
    [
        (left(4 * GIB), ["4.0 GiB left on this machine", "--tp-size", "--max-running-requests", "--context-length"]),
        (left(8 * GIB, 5 * GIB), ["reserved by other servers: 5.0 GiB by process 7", "Stop another server"]),
        (
            left(20 * GIB, asked=1024 * MIB),
            ["--ascend-moe-host-memory leaves 1.0 GiB", "Raise --ascend-moe-host-memory"],
        ),
    ],
    ids=["too large", "others are there", "was given too little"],
)
def test_the_refusal_of_a_server_says_what_it_needs_what_is_there_and_what_to_change(found, named):
    with pytest.raises(Unsupported) as refusal:
        refuse_server_that_does_not_fit(ESTIMATE, found, "/models/large")
    text = str(refusal.value)
    expected = ["/models/large", "2 ranks need at least 5.8 GiB", "weights 4.0 GiB", "windows 100 MiB", *named]
    assert [part for part in expected if part not in text] == []


def test_unknown_weights_are_said_to_be_unknown():
    with pytest.raises(Unsupported, match="weights unknown"):
        refuse_server_that_does_not_fit(ESTIMATE._replace(weights=None), left(GIB), "model")


def test_too_few_tokens_are_refused_with_the_share_of_a_rank():
    refuse_too_few_tokens(512, left(GIB), 2, NEEDS, 512)
    with pytest.raises(Unsupported, match=r"0 tokens is left.*512 are needed.*each rank may take 256 MiB"):
        refuse_too_few_tokens(-3, left(GIB), 2, NEEDS, 512)


def test_the_line_at_start_up_has_every_number_and_only_flags_that_exist():
    line = division_in_words(left(8 * GIB), 2, 3 * GIB, NEEDS, 64 * MIB, 65536, "as many as can be used")
    for part in ("8.0 GiB left", "2 ranks", "weights 3.0 GiB", "keys and values 64 MiB", "65,536 tokens", FLAGS):
        assert part in line
    ours = [flag for flag in FLAGS.split(", ") if flag.startswith("--ascend-moe")]
    assert ours == [OPTIONS["host_memory"].flag]
    assert "\n" not in line


@pytest.mark.parametrize(("size", "words"), [(0, "0 MiB"), (MIB, "1 MiB"), (GIB, "1.0 GiB"), (1536 * MIB, "1.5 GiB")])
def test_sizes_are_said_in_units_that_people_read(size, words):
    assert gib(size) == words
