"""`ascend-moe bench graphs` measures both kinds of step and compares their bits."""

import msgspec
import pytest

from sglang_ascend_moe.launch.bench import bench_command, graphs
from sglang_ascend_moe.launch.bench.graphs import GraphsRecord
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes


def a_record(**changes):
    values = {
        "measured": "step", "batch": 2, "eager_ms": 3.0, "replay_ms": 1.5, "ratio": 2.0, "bit_identical": True,
        "capture_s": 0.25, "count": 60, "operators": 500, "exchange_ms": 0.5,
    }  # fmt: skip
    return GraphsRecord(**{**values, **changes})


@pytest.mark.parametrize(
    ("records", "exit_code"),
    [
        pytest.param([a_record()], 0, id="equal"),
        pytest.param([a_record(), a_record(bit_identical=False)], 1, id="a bit differs"),
        pytest.param(None, 1, id="a rank failed"),
    ],
)
def test_exit_code_and_file(monkeypatch, tmp_path, capsys, records, exit_code):
    verified = a_record(measured="verify", batch=26, rows_ratio=1.25)
    measured = {1: records and list(records), graphs.TREE: [verified]}
    monkeypatch.setattr(graphs, "measure", lambda _steps, tree=1, **_: measured[tree])
    monkeypatch.setattr(graphs, "measure_servers", lambda _requests: [served])
    path = tmp_path / "graphs.json"
    served = a_record(measured="tpot", batch=4, capture_s=None, operators=None, exchange_ms=None)
    assert bench_command.main(["graphs", "--json", str(path)]) == exit_code
    if records is None:
        assert "a rank failed" in capsys.readouterr().err
        assert not path.exists()
    else:
        assert msgspec.json.decode(path.read_bytes(), type=list[GraphsRecord]) == [*records, verified, served]
        out = capsys.readouterr().out
        assert "2      3.00       1.50   2.00" in out
        assert "0.50        1.25" in out


@pytest.mark.nightly
@pytest.mark.parametrize("tree", [pytest.param(1, id="decode"), pytest.param(graphs.TREE, id="verify")])
def test_two_ranks_measure_steps_of_equal_bits(tree):
    [record] = graphs.measure(3, TinySizes(layers=2), batches=(2,), tree=tree)
    assert record.bit_identical
    assert record.operators > 50
    assert record.ratio == pytest.approx(record.eager_ms / record.replay_ms, rel=0.5)
    assert 0 < record.exchange_ms < record.eager_ms
    assert (record.rows_ratio is None) == (tree == 1)


@pytest.mark.parametrize("flags", [["--steps", "0"], ["--requests", "-1"]], ids=" ".join)
def test_numbers_that_measure_nothing_are_wrong_usage(capsys, flags):
    assert bench_command.main(["graphs", *flags]) == 2
    assert f"{' '.join(flags)}: at least" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_servers_with_and_without_graphs_answer_with_equal_bits():
    records = graphs.measure_servers(4, TinySizes(layers=2))
    assert [record.batch for record in records] == [1, 4]
    assert all(record.bit_identical and record.eager_ms > 0 and record.replay_ms > 0 for record in records)
