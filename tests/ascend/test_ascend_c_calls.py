"""Every Ascend C call in the kernels is on the list of kernels/ascend/calls.md, with its constraint and its source."""

from __future__ import annotations

import re
from pathlib import Path

from .host_model import KERNELS

LIST = KERNELS / "ascend" / "calls.md"
CALL = re.compile(r"\b([A-Z][A-Za-z0-9]*)\s*(?:<[^;(){}]*>)?\(")
ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| ([^|]+) \| ((?:`[^|`]+`, )?[\u4e00-\u9fff][^|]*) \|$", re.MULTILINE)
"""Calls with the same constraint, the constraint, and where it is stated: a section, with its file if it is another."""


def calls(files: list[Path]) -> set[str]:
    code = "\n".join(re.sub(r"//.*", "", path.read_text()) for path in files)
    return set(CALL.findall(code))


def test_the_list_has_the_calls_of_the_kernels_and_no_others():
    kernels = calls([*(KERNELS / "ascend").glob("*.h"), *(KERNELS / "ascend").glob("*.cpp")])
    offered = calls(list((KERNELS / "ascend" / "host_model").glob("*.h")))
    rows = ROW.findall(LIST.read_text())
    listed = [name for names, _, _ in rows for name in re.findall(r"\w+", names)]
    assert sorted(listed) == sorted(kernels & offered)


def test_kernels_use_nothing_of_ascend_c_that_the_model_lacks():
    """What a kernel calls is its own, the model's, or a type's constructor."""
    kernels = [*(KERNELS / "ascend").glob("*.h"), *(KERNELS / "ascend").glob("*.cpp")]
    code = "\n".join(path.read_text() for path in kernels)
    defined = set(re.findall(r"\binline [^;=]*?\b([A-Z]\w*)\(", code)) | set(re.findall(r"\bstruct (\w+)", code))
    offered = calls(list((KERNELS / "ascend" / "host_model").glob("*.h")))
    assert calls(kernels) - defined - offered == set()
