"""What the README tells people to type exists and works."""

import re
import subprocess
import sys
from pathlib import Path

from tests.packaging.source_tree import ROOT

README = (ROOT / "README.md").read_text()


def test_make_targets_of_the_readme_exist():
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", re.sub(r"\bg\+\+ and make\b", "", README)))
    defined = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= defined


def test_example_of_the_exchange_runs_on_two_ranks(tmp_path: Path):
    blocks = re.findall(r"^```python\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "Exchange.create" in block)
    (tmp_path / "example.py").write_text(example)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "example.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert sorted(result.stdout.splitlines()) == [f"rank {rank}: [5, 64] torch.bfloat16" for rank in range(2)]


def test_ci_runs_the_test_command_of_the_readme():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)
