"""The simulation against what can be computed by hand, and against queueing theory."""

from __future__ import annotations

from math import inf, isinf
from statistics import mean
from typing import NamedTuple

import pytest

from sglang_ascend_moe.launch.plan.request_queues import (
    CLOSE,
    Latencies,
    ServerLimits,
    SimulatedRole,
    Workload,
    quantile,
    simulate,
)


class FixedSteps(NamedTuple):
    """A token is read in `read` seconds, a decode step takes `write` seconds and `each` more for every request."""

    read: float = 1e-4
    write: float = 0.02
    each: float = 0.0

    def prefill_seconds(self, tokens: int, _prompts: int, _context: float) -> float:
        return tokens * self.read

    def decode_seconds(self, requests: int, _context: float) -> float:
        return self.write + requests * self.each


def server(chunk: int = 8192, running: int = 64, tokens: int = 10**9, per_step: float = 1.0, **steps: float):
    return SimulatedRole(1, FixedSteps(**steps), ServerLimits(chunk, running, tokens, per_step))


def test_one_request_takes_the_sum_of_its_steps():
    found = simulate(Workload(1, 1000, 11, concurrency=1), [server()], arrival=0.5)
    assert found.ttft == pytest.approx([0.6])
    assert found.tpot == pytest.approx([0.02])
    assert found.elapsed == pytest.approx(0.8)
    assert found.output_rate == pytest.approx(11 / 0.8)


def test_a_request_between_two_servers_takes_the_transfer_too():
    found = simulate(Workload(1, 1000, 11, concurrency=1), [server(), server()], transfer=0.3)
    assert found.ttft == pytest.approx([0.4])
    assert found.tpot == pytest.approx([0.02])


def test_a_prompt_longer_than_a_chunk_is_read_in_chunks():
    pieces = []

    class Counted(FixedSteps):
        def prefill_seconds(self, tokens: int, _prompts: int, context: float) -> float:
            pieces.append((tokens, context))
            return 0.1

    role = SimulatedRole(1, Counted(), ServerLimits(400, 4, 10**9))
    assert simulate(Workload(1, 1000, 1, concurrency=1), [role]).ttft == pytest.approx([0.3])
    assert pieces == [(400, 0), (400, 400), (200, 800)]


@pytest.mark.parametrize("utilisation", [0.3, 0.5, 0.8])
def test_prompts_that_are_read_one_at_a_time_wait_as_pollaczek_and_khinchine_say(utilisation: float):
    """M/D/1: the mean wait is rho S / (2 (1 - rho))."""
    service = 0.1
    load = Workload(20_000, 1000, 1, rate=utilisation / service)
    found = simulate(load, [server(chunk=1000)])
    assert mean(found.ttft) == pytest.approx(service + utilisation * service / (2 * (1 - utilisation)), rel=0.05)


def test_many_servers_are_little_waited_for():
    load = Workload(2000, 1000, 1, rate=8.0)
    one, four = (simulate(load, [server(chunk=1000)._replace(instances=number)]) for number in (1, 4))
    assert four.median[0] == pytest.approx(0.1)
    assert one.median[0] > 2 * four.median[0]


def test_prompts_interrupt_the_writing_of_others_but_not_on_servers_of_their_own():
    load = Workload(200, 1000, 100, rate=5.0)
    together = simulate(load, [server()])
    apart = simulate(load, [server(), server()])
    assert apart.median[1] == pytest.approx(0.02)
    assert together.median[1] > 1.5 * apart.median[1]


def test_so_many_requests_are_under_way():
    most = 0

    class Watched(FixedSteps):
        def decode_seconds(self, requests: int, _context: float) -> float:
            nonlocal most
            most = max(most, requests)
            return 0.02

    def greatest(running: int, tokens: int, concurrency: int) -> int:
        nonlocal most
        most = 0
        role = SimulatedRole(1, Watched(), ServerLimits(8192, running, tokens))
        simulate(Workload(40, 100, 50, concurrency=concurrency), [role])
        return most

    assert greatest(64, 10**9, 8) == 8
    assert greatest(5, 10**9, 8) == 5
    assert greatest(64, 3 * 150 + 149, 8) == 3


def test_a_step_that_gives_more_tokens_takes_its_part_of_the_time():
    load = Workload(1, 100, 1001, concurrency=1)
    assert simulate(load, [server(per_step=2.5)]).tpot == pytest.approx([0.02 / 2.5])


def test_who_comes_while_others_write_waits_for_the_end_of_a_step_only():
    load = Workload(2, 100, 1000, rate=1.0)
    found = simulate(load, [server(read=1e-6)], seed=3)
    assert max(found.ttft) <= 0.02 + 100e-6 * 2 + 1e-9


def test_a_server_without_room_for_a_request_never_answers():
    found = simulate(Workload(5, 100, 50, rate=1.0), [server(tokens=149)])
    assert isinf(found.median[0])
    assert found.output_rate == 0


def test_the_same_seed_gives_the_same_numbers():
    load = Workload(300, 1000, 100, rate=6.0)
    assert simulate(load, [server()], seed=1) == simulate(load, [server()], seed=1)
    assert simulate(load, [server()], seed=1) != simulate(load, [server()], seed=2)


def test_no_request_is_lost():
    for load in (Workload(37, 900, 20, rate=50.0), Workload(37, 900, 20, concurrency=5)):
        found: Latencies = simulate(load, [server(chunk=512, running=3), server(running=2)])
        assert len(found.ttft) == len(found.tpot) == 37
        assert max(found.ttft) < inf


@pytest.mark.parametrize(("part", "found"), [(0.5, 2), (0.51, 3), (0.99, 4), (0.01, 1)])
def test_quantiles(part: float, found: int):
    assert quantile([4, 1, 3, 2], part) == found


def test_servers_that_share_cores_slow_each_other_while_both_work():
    """Two prompts at once: the second is read while tokens of the first are written."""
    load = Workload(2, 1000, 11, concurrency=2)
    roles = [server(chunk=1000), server()]
    apart, shared = simulate(load, roles), simulate(load, roles, shared=True)
    assert shared.ttft[0] == pytest.approx(apart.ttft[0])
    read, step = apart.ttft[0], apart.tpot[0]
    # All cores work all the time, once the tokens of the first have begun.
    busy = 2 * read + 20 * step
    assert apart.elapsed < shared.elapsed <= busy + CLOSE
    assert shared.tpot[0] > step


def test_a_server_that_works_alone_on_shared_cores_is_as_fast_as_on_its_own():
    load = Workload(4, 1000, 11, concurrency=1)
    alone, shared = simulate(load, [server()]), simulate(load, [server()], shared=True)
    assert shared.ttft == pytest.approx(alone.ttft)
    assert shared.tpot == pytest.approx(alone.tpot)


def test_requests_that_come_at_once_are_taken_one_after_the_other():
    """The second comes while the first is read alone, and is read after it."""
    load = Workload(2, 1000, 1, concurrency=2)
    assert simulate(load, [server()]).ttft == pytest.approx([0.2, 0.2])
    assert simulate(load, [server()], gap=0.01).ttft == pytest.approx([0.11, 0.21])


def test_the_last_request_comes_when_it_is_known_to():
    """Each is answered before the next one comes, the last 0.1 s after it came; of two the first comes at once."""
    found = simulate(Workload(5, 1000, 1, rate=0.01, span=600.0), [server()])
    assert found.elapsed == pytest.approx(600.1)
    assert simulate(Workload(2, 1000, 1, rate=0.01, span=0.05), [server()]).ttft == pytest.approx([0.1, 0.15])
