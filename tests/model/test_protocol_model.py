"""The exchange protocol is proven in a model, and every step of it is shown to be needed; docs/protocol-model.md."""

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.model.verification import verify

TWO = ("RANKS=2", "FULL_FABRIC")
THREE = ("RANKS=3",)
GRANTS = ("GRANTS",)
BRIEF = "OLDEST=1"  # no dispatch stays open during another exchange: fewer states

SCENARIOS = {
    "decode": ("MAY_DISPATCH", "EXPERTS_AT_ANY_TIME"),
    "prefill-rounds": ("MAY_PLAN", "MAY_DISPATCH", "PLANNED_ROUNDS"),
    "prefill-half-windows": ("MAY_DISPATCH", "MAY_DISPATCH_WHOLE", "SLOTS=2", "HALVES", "EXPERTS_AT_ANY_TIME"),
    "decode-and-plans-in-any-order": ("MAY_PLAN", "MAY_DISPATCH"),
    "two-slots": ("MAY_DISPATCH", "SLOTS=2", "EXPERTS_AT_ANY_TIME"),
    "combine-twice": ("MAY_DISPATCH", "MAY_COMBINE_AGAIN"),
    "combine-twice-in-two-slots": ("MAY_DISPATCH", "MAY_COMBINE_AGAIN", "SLOTS=2"),
    "dispatch-without-combine": ("MAY_DISPATCH", "MAY_ABANDON"),
    "invalid-input": ("MAY_DISPATCH", "MAY_BE_INVALID", BRIEF),
    "invalid-plan": ("MAY_DISPATCH", "MAY_PLAN_INVALID", BRIEF),
    "too-small-window": ("MAY_DISPATCH", "MAY_BE_TOO_SMALL"),
    "kind-mismatch": ("MAY_DISPATCH", "MAY_PLAN", "MAY_MISMATCH", BRIEF),
}


class Removal(NamedTuple):
    """A step taken away: in which scenario that fails, and a part of what the verifier says then."""

    step: str
    scenario: tuple[str, ...]
    reason: str
    markers: tuple[str, ...]


HANG = "invalid end state"
DECODE = ("MAY_DISPATCH", BRIEF)
GRANTED = (*DECODE, *GRANTS)
PREFILL = (*SCENARIOS["prefill-rounds"], BRIEF)
AGAIN = (*SCENARIOS["combine-twice"], BRIEF)
INVALID = SCENARIOS["invalid-input"]
TOO_SMALL = (*SCENARIOS["too-small-window"], BRIEF)

PUSHES = [
    Removal("PUSH_COUNTS", DECODE, HANG, ("push-counts",)),
    Removal("PUSH_HEADER", DECODE, HANG, ("push-header",)),
    Removal("PUSH_GRANT", GRANTED, HANG, ("push-grant",)),
    Removal("POST_MAILBOX", PREFILL, "mailbox_begin", ("post-mailbox",)),
    Removal("PLACE_ROW", DECODE, "row_in", ("place-row",)),
    Removal("PLACE_BESIDE", DECODE, "row_beside", ("place-scale", "place-check")),
    Removal("PUSH_ARRIVE", DECODE, HANG, ("push-arrive",)),
    Removal("WRITE_OUT", DECODE, "row_out", ("write-out",)),
    Removal("PUSH_DONE", DECODE, HANG, ("push-done",)),
]
WAITS = [
    Removal("WAIT_HEADERS", DECODE, "header_data", ("wait-headers",)),
    Removal("WAIT_COUNTS", DECODE, "count_data", ("wait-counts",)),
    Removal("WAIT_GRANTS", GRANTED, "grant_data", ("wait-grants",)),
    Removal("WAIT_ARRIVALS", DECODE, "row_", ("wait-arrivals",)),
    Removal("WAIT_DONE", DECODE, "row_out", ("wait-done", "read-out")),
    Removal("REJOIN", AGAIN, "row_out", ("rejoin",)),
]
FENCES = [
    Removal("COUNTS_FENCE", DECODE, "count_data", ("push-counts",)),
    Removal("GRANT_FENCE", GRANTED, "grant_data", ("push-grant",)),
    Removal("HEADER_FENCE", DECODE, "header_data", ("push-header",)),
    Removal("MAILBOX_FENCE", PREFILL, "mailbox_begin", ("push-header", "post-mailbox")),
    Removal("ARRIVE_FENCE", DECODE, "row_", ("push-arrive", "drain-rows")),
    Removal("DONE_FENCE", DECODE, "row_out", ("push-done",)),
]
PLACES = [
    Removal("HEADER_PARITY", INVALID, "header_word", ("record-parity",)),
    Removal("COUNTS_PARITY", TOO_SMALL, "count_word", ("record-parity",)),
    Removal("MAILBOX_PARITY", ("MAY_PLAN", BRIEF), "mailbox_begin", ("mailbox-parity",)),
    Removal("SLOT_ROTATION", SCENARIOS["two-slots"], "row_in", ("take-slot",)),
    Removal("EPOCHS_ADVANCING", DECODE, "header_word_flight", ("advance-epoch",)),
]
REFUSALS = [
    Removal("KIND_CHECK", ("MAY_DISPATCH", "MAY_MISMATCH", BRIEF), "mailbox_begin", ("check-kind",)),
    Removal("ERROR_CHECK", INVALID, HANG, ("check-error",)),
    Removal("JOINT_FIT", TOO_SMALL, "row_in", ("joint-fit",)),
]
# What only shows where one rank is ahead of another while a third one is late.
AMONG_THREE = [Removal("ALL_HEADERS", INVALID, "header_word_flight", ("wait-headers",))]
NOBODY_FAILED = "struck"
WRONG_CULPRIT = "culprit==victim"
FAILURES = [
    Removal("PUSH_STATUS", THREE, WRONG_CULPRIT, ("push-status",)),
    Removal("STATUS_FENCE", ("RANKS=2",), NOBODY_FAILED, ("push-status",)),
    Removal("JUDGING_STATUS", THREE, WRONG_CULPRIT, ("judge-status",)),
    Removal("KEEPING_FINDING", THREE, WRONG_CULPRIT, ("keep-finding",)),
    Removal("WATCHING_PROCESSES", ("RANKS=2",), "fate==", ("watch-processes",)),
    Removal("LOOKING_IN_ORDER", ("RANKS=2",), NOBODY_FAILED, ("note-ended",)),
    Removal("DEADLINE", ("RANKS=2",), HANG, ("deadline",)),
    Removal("REFUSING_POISONED", ("RANKS=2",), "!(failed[me])", ("refuse-poisoned",)),
]
STEPS_OF_AN_EXCHANGE = [*PUSHES, *WAITS, *FENCES, *PLACES, *REFUSALS]
REMOVALS = [*STEPS_OF_AN_EXCHANGE, *AMONG_THREE, *FAILURES]

by_step = pytest.mark.parametrize("removal", STEPS_OF_AN_EXCHANGE, ids=lambda removal: removal.step.lower())


# With three ranks these have the most states.
LONGEST = {
    "prefill-half-windows",
    "decode-and-plans-in-any-order",
    "two-slots",
    "combine-twice",
    "combine-twice-in-two-slots",
    "too-small-window",
}
# What grants change most, in few states; the others at night.
OFTEN_GRANTED = {"decode", "too-small-window"}


@pytest.mark.parametrize(
    ("switches", "scenario"),
    [
        pytest.param(
            ranks + counts,
            scenario,
            id=f"{name}-{number}{scheme}",
            marks=pytest.mark.nightly if name in longest else (),
        )
        for name, scenario in SCENARIOS.items()
        for number, ranks, scheme, counts, longest in (
            ("2-ranks", TWO, "", (), ()),
            ("3-ranks", THREE, "", (), LONGEST),
            ("2-ranks", TWO, "-granting", GRANTS, set(SCENARIOS) - OFTEN_GRANTED),
            ("3-ranks", THREE, "-granting", GRANTS, SCENARIOS),
        )
    ],
)
def test_no_exchange_hangs_or_reads_what_is_stale_or_torn(switches, scenario, tmp_path: Path):
    verdict = verify("exchange.pml", switches + scenario, tmp_path, optimised=True)
    assert (verdict.errors, verdict.reason, verdict.complete) == (0, "", True)


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(("RANKS=2",), id="2-ranks"),
        pytest.param(("RANKS=3",), id="3-ranks"),
        pytest.param(("RANKS=2", "GRANTS"), id="2-ranks-granting"),
        pytest.param(("RANKS=3", "GRANTS"), id="3-ranks-granting", marks=pytest.mark.nightly),
    ],
)
def test_a_failure_at_any_step_ends_every_wait_and_names_the_culprit(switches: tuple[str, ...], tmp_path: Path):
    verdict = verify("failure.pml", switches, tmp_path, optimised=True)
    assert (verdict.errors, verdict.reason, verdict.complete) == (0, "", True)


@by_step
def test_an_exchange_fails_without(removal: Removal, tmp_path: Path):
    verdict = verify("exchange.pml", (*TWO, *removal.scenario, f"WITHOUT_{removal.step}"), tmp_path)
    assert verdict.errors > 0
    assert removal.reason in verdict.reason


@pytest.mark.parametrize(
    "removal", [*PUSHES, *WAITS, *PLACES, *REFUSALS, *AMONG_THREE], ids=lambda removal: removal.step.lower()
)
def test_an_exchange_of_three_ranks_fails_without(removal: Removal, tmp_path: Path):
    verdict = verify("exchange.pml", (*THREE, *removal.scenario, f"WITHOUT_{removal.step}"), tmp_path)
    assert verdict.errors > 0


@pytest.mark.parametrize("removal", FAILURES, ids=lambda removal: removal.step.lower())
def test_a_failure_is_misjudged_without(removal: Removal, tmp_path: Path):
    verdict = verify("failure.pml", (*removal.scenario, f"WITHOUT_{removal.step}"), tmp_path)
    assert verdict.errors > 0
    assert removal.reason in verdict.reason


def test_waiting_for_counts_is_only_needed_where_a_header_does_not_release_them(tmp_path: Path):
    host = (*TWO, *DECODE, "HEADER_RELEASES_COUNTS", "WITHOUT_WAIT_COUNTS")
    verdict = verify("exchange.pml", host, tmp_path)
    assert (verdict.errors, verdict.complete) == (0, True)


@pytest.mark.parametrize(
    ("step", "scenario", "reason"),
    [("WAIT_COUNTS", DECODE, "count_data"), ("JOINT_FIT", TOO_SMALL, "row_in")],
    ids=["wait_counts", "joint_fit"],
)
def test_an_exchange_with_grants_fails_without(step: str, scenario: tuple[str, ...], reason: str, tmp_path: Path):
    verdict = verify("exchange.pml", (*TWO, *scenario, *GRANTS, f"WITHOUT_{step}"), tmp_path)
    assert reason in verdict.reason


def test_grants_keep_counts_from_being_overwritten_without_parities(tmp_path: Path):
    verdict = verify("exchange.pml", (*TWO, *TOO_SMALL, *GRANTS, "WITHOUT_COUNTS_PARITY"), tmp_path)
    assert (verdict.errors, verdict.complete) == (0, True)


@pytest.mark.parametrize(
    ("scenario", "call"),
    [
        ("decode", "DISPATCH"),
        ("decode", "COMBINE_FIRST"),
        ("prefill-rounds", "PLAN"),
        ("prefill-half-windows", "DISPATCH_WHOLE"),
        ("two-slots", "COMBINE_SECOND"),
        ("invalid-input", "INVALID_DISPATCH_OF_LAST"),
        ("invalid-plan", "INVALID_PLAN_OF_LAST"),
        ("too-small-window", "TOO_SMALL"),
        ("kind-mismatch", "MISMATCH"),
    ],
)
def test_the_scenario_gets_to_the_end_of(scenario: str, call: str, tmp_path: Path):
    verdict = verify("exchange.pml", (*TWO, *SCENARIOS[scenario], f"NEVER={call}"), tmp_path)
    assert verdict.reason.startswith("assertion violated (call!=")


@pytest.mark.parametrize("fate", ["dies", "stalls", "raises", "leaves_early"])
def test_a_survivor_notices_that_the_victim(fate: str, tmp_path: Path):
    verdict = verify("failure.pml", ("RANKS=2", f"NEVER={fate}"), tmp_path)
    assert "fate!=" in verdict.reason
