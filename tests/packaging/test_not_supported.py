"""docs/sglang.md names every setting of SGLang that `--ascend-moe` refuses, and no other."""

import re

from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from tests.packaging.source_tree import ROOT

PAGE = (ROOT / "docs" / "sglang.md").read_text()
# Refused elsewhere than in the table of conflicts, or named to say what is refused.
BESIDES = {"--ep-size", "--tp-size", "--moe-a2a-backend"}


def test_every_conflict_is_in_the_table_of_the_page_and_no_other():
    section = PAGE.split("\n## Not supported\n")[1].split("\n## ")[0]
    rows = "\n".join(re.findall(r"^\|.*\|$", section, flags=re.MULTILINE))
    named = set(re.findall(r"--[a-z][a-z0-9-]+|\bSGLANG_[A-Z_]+", rows))
    assert named == {conflict.flag for conflict in CONFLICTS} | BESIDES
