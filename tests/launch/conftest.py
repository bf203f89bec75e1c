from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.exchange.pool import Pool


@pytest.fixture(scope="module")
def make_pool() -> Iterator[Callable[[int], Pool]]:
    """Ranks that live as long as the tests of a module, made when first needed."""
    made: dict[int, Pool] = {}

    def make(ranks: int) -> Pool:
        if ranks not in made:
            made[ranks] = Pool(ranks)
        return made[ranks]

    yield make
    for pool in made.values():
        pool.close()
