"""SGLang is asked about gathered batches as the installed release wants it."""

import pytest

from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.worker import gathered_batches


@pytest.mark.parametrize(("release", "asked_with"), [("0.5.18", ("arguments",)), ("0.5.20", ())])
def test_a_release_is_asked_with_what_it_wants(monkeypatch, release: str, asked_with: tuple[str, ...]):
    seen = []

    def answer(*given: str) -> int:
        seen.append(given)
        return 4

    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    monkeypatch.setattr("sglang.srt.runtime_context.get_server_args", lambda: "arguments")
    monkeypatch.setattr("sglang.srt.utils.require_mlp_tp_gather", answer)
    monkeypatch.setattr("sglang.srt.utils.get_cuda_graph_batch_size_alignment", answer)
    assert gathered_batches.mlps_gather() is True
    assert gathered_batches.batch_multiple() == 4
    assert seen == [asked_with] * 2
