from __future__ import annotations

from collections.abc import Iterator

import pytest

from .pool import Pool, Program


class Pools:
    """One pool for each number of ranks, made when first needed and made anew after a failure."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}

    def run(self, ranks: int, program: Program, *arguments: object, deadline_s: float = 120.0) -> list:
        """Run a program on `ranks` ranks; results in rank order."""
        if ranks not in self._pools:
            self._pools[ranks] = Pool(ranks)
        try:
            return self._pools[ranks].run(program, *arguments, deadline_s=deadline_s)
        except BaseException:
            # Whatever its ranks shared, and have yet to say, is of no use to the next test.
            self._pools.pop(ranks).close()
            raise

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()


@pytest.fixture(scope="session")
def pools() -> Iterator[Pools]:
    """Ranks that outlive the test, for programs that leave them as they were."""
    pools = Pools()
    yield pools
    pools.close()


@pytest.fixture
def fresh_pool() -> Iterator:
    """Makes pools for tests that harm their ranks; ends them after the test."""
    made: list[Pool] = []

    def make(ranks: int) -> Pool:
        made.append(Pool(ranks))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(params=["windows", "collective"])
def implementation(request: pytest.FixtureRequest) -> str:
    """Which exchange runs: the one over windows or the baseline over collectives."""
    return request.param


@pytest.fixture(params=[2, 3, 4, 8], ids=lambda ranks: f"{ranks}ranks")
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param
