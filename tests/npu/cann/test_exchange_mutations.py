"""Every synchronisation and hand-over of a stream that is taken out of our code is missed by the test named for it."""

from __future__ import annotations

import pytest

from tests.ascend.host_model import REPOSITORY
from tests.npu.cann.build_cann import Headers
from tests.npu.cann.exchange_mutations import MUTATIONS, SEEDS, Mutation, build_mutant, try_mutant

FEWEST = 20


@pytest.mark.nightly
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_missing_synchronisation_is_caught(libraries, npu_headers: Headers, tmp_path, mutation: Mutation):
    seed, words = try_mutant(mutation, build_mutant(mutation, libraries, npu_headers, tmp_path))
    if mutation.needless:
        assert seed is None, f"{mutation.needless}, but {mutation.test.__name__}: {words}"
    else:
        assert seed is not None, mutation.test.__name__


TESTS = {mutation.test.__name__: mutation.test for mutation in MUTATIONS}


@pytest.mark.nightly
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("test", TESTS.values(), ids=TESTS)
def test_without_the_fault_the_same_test_passes(npu_ranks, test, seed):
    test(npu_ranks, seed)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_place_of_a_fault_is_there(mutation: Mutation):
    assert (REPOSITORY / mutation.file).read_text().count(mutation.old) == 1


def test_faults_are_many():
    assert sum(not mutation.needless for mutation in MUTATIONS) >= FEWEST
