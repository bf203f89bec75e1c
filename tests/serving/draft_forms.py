"""How tokens are drafted in the tests, and engines that draft so."""

from pathlib import Path
from typing import Any, NamedTuple

from tests.serving.configurations import PARALLEL, ours
from tests.serving.draft_models import Drafted
from tests.serving.engines import EngineConfig

# The longest prompts take several chunks.
CHUNKS = {"chunked_prefill_size": 128}
ACCEPTED = 1.5
"""Tokens that a step of a request gives at least, averaged over the prompts; measured: 1.9 to 3.0."""


class Form(NamedTuple):
    """How tokens are drafted: algorithm, and steps, branches and tokens of a tree."""

    algorithm: str
    steps: int
    branches: int
    tokens: int

    def arguments(self, draft: Path | None) -> dict[str, Any]:
        """Those of an engine."""
        return {
            "speculative_algorithm": self.algorithm,
            "speculative_draft_model_path": None if draft is None else str(draft),
            "speculative_num_steps": self.steps,
            "speculative_eagle_topk": self.branches,
            "speculative_num_draft_tokens": self.tokens,
            **CHUNKS,
        }


NEXTN = {
    "1 step": Form("NEXTN", 1, 1, 2),
    "chain of 2": Form("NEXTN", 2, 1, 3),
    "tree": Form("NEXTN", 3, 2, 5),
    "chain of 4": Form("EAGLE", 4, 1, 5),
}
EAGLE3 = {"chain of 3": Form("EAGLE3", 3, 1, 4), "tree": Form("EAGLE3", 3, 2, 6)}
TREES = {
    "deepseek_v3": NEXTN["tree"],
    "qwen3_moe": EAGLE3["tree"],
    "glm4_moe": NEXTN["tree"],
    "minimax_m2": EAGLE3["tree"],
}
"""By family. The draft models of NEXTN have experts, too."""


def average(values: list[float]) -> float:
    return sum(values) / len(values)


GRAPHS = {"ascend_moe_require_graphs": True}
EAGER = {"disable_cuda_graph": True}


def config_of(
    checkpoints: Drafted, form: Form, dtype: str, parallel: str, *patches: str, steps: dict[str, bool] = GRAPHS
) -> EngineConfig:
    """steps: in graphs, or eager."""
    return ours(checkpoints.model, dtype, *patches, **form.arguments(checkpoints.draft), **PARALLEL[parallel], **steps)
