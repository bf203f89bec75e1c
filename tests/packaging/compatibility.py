"""What works where: `python -m tests.packaging.compatibility` writes docs/compatibility.md.

It is as the tests say that are named here, and the table of what is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
INTRODUCTION = """# Compatibility

A host runs what needs no NPU, an [emulated NPU](ascend.md#emulated-npus) a part of it; **no NPU has run anything.**
`python -m tests.packaging.compatibility` writes this page from tests and [what is refused](sglang.md#not-supported).

"""
YES, NO, NEVER = "yes", "no", "never run"
REFUSED = NO
"""In place of a test: the feature is refused there, or has no kernels."""


class Feature(NamedTuple):
    """host, emulated: the file of tests that shows it there, `REFUSED`, or nothing. flag: of a feature that is refused
    everywhere while this is in the table of conflicts."""

    name: str
    host: str = ""
    emulated: str = ""
    flag: str = ""

    def outcomes(self) -> tuple[str, str, str]:
        """On a host, an emulated NPU and an NPU. Raises ValueError for a flag that is not refused."""
        if self.flag:
            if self.flag not in {conflict.flag for conflict in CONFLICTS}:
                raise ValueError(f"{self.name}: {self.flag} is not refused any more; name its tests instead")
            return NO, NO, NO
        host, emulated = (REFUSED if shown == REFUSED else YES if shown else NEVER for shown in self[1:3])
        return host, emulated, NO if emulated == NO else NEVER


FEATURES = (
    Feature("tensor-parallel attention", "serving/test_greedy_tokens.py", "serving/test_emulated_npu.py"),
    Feature("data-parallel attention", "serving/test_greedy_tokens.py", "serving/test_emulated_npu.py"),
    Feature("decode in graphs", "serving/test_decode_graphs.py", "npu/cann/test_graphs_on_npu.py"),
    Feature("prefill in rounds", "exchange/test_batches.py", "npu/cann/test_exchange_on_npu.py"),
    Feature("rows in int8", "exchange/test_int8.py", "npu/cann/test_exchange_on_npu.py"),
    Feature("rows with checksums", "exchange/test_corruption.py", REFUSED),
    Feature("the schedule `collective`", "serving/test_schedules.py", REFUSED),
    Feature("experts in bfloat16 and float16", "serving/worker/test_layer.py", "serving/npu/test_experts.py"),
    Feature("experts in W8A8 and W4A8", "serving/test_quantised_hosts.py", "serving/test_quantised_npu_servers.py"),
    Feature(
        "[Qwen3-MoE, DeepSeek-V2 and V3, GLM4-MoE, MiniMax-M2](models.md)",
        "serving/test_families.py",
        "serving/test_emulated_npu_families.py",
    ),
    Feature("Qwen2-MoE", "serving/test_families.py"),
    Feature("DeepSeek-V3.2, GLM-5", REFUSED, "serving/test_emulated_npu_sparse_attention.py"),
    Feature("images", "serving/test_images.py"),
    Feature("redundant experts, EPLB", "serving/test_redundant_experts.py"),
    Feature(
        "[prefill and decode apart](disagg.md)",
        "launch/disagg/test_deployed.py",
        "launch/disagg/test_deployed_on_npus.py",
    ),
    Feature("several processes for HTTP", "serving/test_http_processes.py"),
    Feature("a secret", "serving/test_server_secret.py"),
    Feature("ranks that die or stop are named", "serving/test_server_faults.py", "npu/cann/test_harmed_replays.py"),
    Feature("windows of memfabric and ACLSHMEM", REFUSED, "windows/test_pooled.py"),
    Feature("[DeepEP's Buffer](deep-ep.md)", "deep_ep/test_low_latency.py", REFUSED),
    Feature(
        "[chains of drafts](sglang.md#speculative-decoding)",
        "serving/test_speculation.py",
        "serving/test_emulated_npu_drafts.py",
    ),
    Feature("trees of drafts", "serving/test_speculation.py", REFUSED),
    Feature(
        "drafts of prefill and decode instances",
        "launch/disagg/test_deployed_drafts.py",
        "launch/disagg/test_deployed_on_npus.py",
    ),
    Feature("several nodes on one machine", "serving/test_server_nodes.py", "serving/test_server_nodes.py"),
    Feature("several machines", REFUSED),
    Feature(
        "[context parallelism](sglang.md#context-parallelism)",
        "serving/test_context_parallel.py",
        "serving/test_context_parallel.py",
    ),
    Feature("[pipeline parallelism](sglang.md#pipeline-parallelism)", "serving/test_pipeline.py"),
    Feature("LoRA", flag="--enable-lora"),
    Feature("two-batch overlap", flag="--enable-two-batch-overlap"),
)


def page() -> str:
    return INTRODUCTION + "| host | emulated NPU | NPU | features |\n|---|---|---|---|\n" + "".join(_rows())


def _rows() -> Iterator[str]:
    """Features with the same outcomes together, what works first."""
    together: dict[tuple[str, str, str], list[str]] = {}
    for feature in FEATURES:
        together.setdefault(feature.outcomes(), []).append(feature.name)
    for outcomes in sorted(together, key=lambda found: [(YES, NEVER, NO).index(one) for one in found]):
        yield f"| {' | '.join(outcomes)} | {', '.join(together[outcomes])} |\n"


def main() -> None:
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
