"""Every fault seeded into the kernels is noticed by the test that is named for it."""

from __future__ import annotations

import inspect

import pytest

from .host_model import KERNELS
from .kernel_mutations import Mutation, build_mutant, try_mutant
from .seeded_faults import MUTATIONS

FEWEST = 20


OFTEN = MUTATIONS[::5]
"""On every change; all at night."""


@pytest.mark.parametrize(
    "mutation",
    [
        pytest.param(mutation, id=mutation.name, marks=() if mutation in OFTEN else pytest.mark.nightly)
        for mutation in MUTATIONS
    ],
)
def test_a_seeded_fault_is_caught(objects, mutant_pools, tmp_path, mutation: Mutation):
    caught, words = try_mutant(mutation, mutant_pools, build_mutant(mutation, objects, tmp_path))
    assert caught, f"{mutation.test.__name__}: {words}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_place_of_a_fault_is_there(mutation: Mutation):
    assert (KERNELS / "ascend" / mutation.file).read_text().count(mutation.old) == 1


CHECKS = {(mutation.test, repr(mutation.arguments)): mutation for mutation in MUTATIONS}


@pytest.mark.parametrize("mutation", CHECKS.values(), ids=lambda mutation: mutation.name)
def test_without_the_fault_the_same_test_passes(library, pools, mutation: Mutation):
    caught, words = try_mutant(mutation, pools, library)
    assert not caught, f"{mutation.test.__name__}: {words}"


def test_faults_are_many_and_their_tests_take_the_arguments():
    assert len(MUTATIONS) >= FEWEST
    for mutation in MUTATIONS:
        assert {*inspect.signature(mutation.test).parameters} == {"pools", "library", *mutation.arguments}
