"""Faults in what kernels do to leave the times of their steps."""

from __future__ import annotations

from . import test_step_times
from .kernel_mutations import Mutation

TIMES = test_step_times.test_times_of_steps_become_events_of_the_calls_that_are_traced

TIMED_FAULTS = [
    Mutation(
        "times-stored-before-they-are-there",
        "control.h",
        "            unit.SetValue(word, GetWord(lines, word));\n        Order<HardEvent::S_MTE3>();\n",
        "            unit.SetValue(word, GetWord(lines, word));\n",
        TIMES,
        {"cores": 4, "how": "decode"},
    ),
    Mutation(
        "times-overwritten-while-stored",
        "control.h",
        "        Store(Global<uint64_t>(address), unit, words);\n        Order<HardEvent::MTE3_S>();\n",
        "        Store(Global<uint64_t>(address), unit, words);\n",
        TIMES,
        {"cores": 4, "how": "decode"},
    ),
    Mutation(
        "times-of-the-epoch-before",
        "control.h",
        "        Times().epoch = epoch;\n",
        "        Times().epoch = epoch - 1;\n",
        TIMES,
        {"cores": 1, "how": "decode"},
    ),
    Mutation(
        "combine-not-told-to-leave-times",
        "control.h",
        "state_seal(first, second), timed_);",
        "state_seal(first, second));",
        TIMES,
        {"cores": 4, "how": "decode"},
    ),
]
