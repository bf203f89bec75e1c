"""Rules for source files that no linter knows."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from tests.packaging.source_tree import PACKAGE_FOLDERS, ROOT, modules

LONGEST_FILE = 600
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}
SOURCE_SUFFIXES = {".py", ".cpp", ".h", ".pml", ".sh"}
SOURCE_FOLDERS = (*PACKAGE_FOLDERS, "kernels", "examples", "tests")
# Module names that stand twice, each with its reason.
SHARED_NAMES = {
    "__init__": "what a folder is",
    "exchange": "the folder's one class, which `sglang_ascend_moe` exports",
}
# Modules that may read the environment, each with its reason.
ENVIRONMENT_READERS = {
    "sglang_ascend_moe.launch.cann": "where CANN's set_env.sh says that it is, which CANN's own tools read too",
    "sglang_ascend_moe.launch.servers.preflight": "switches of the hub's library and of SGLang: where models are",
    "sglang_ascend_moe.serving.host_platform": "SGLang's switch for its own CPU platform, which ours steps back for",
    "sglang_ascend_moe.serving.stages": "the file in which a command that starts a server wants to read how far it is",
    "sglang_ascend_moe.serving.host.fixes": "SGLang's list of cores per rank, which wins over an equal share",
}


def source_files() -> list[Path]:
    found = [path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SOURCE_SUFFIXES]
    return sorted(found)


def test_no_source_file_is_longer_than_one_can_read():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    assert lengths, "no source files found"
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_file_names_say_what_is_inside():
    vague = [
        str(path.relative_to(ROOT))
        for path in source_files()
        if VAGUE_NAMES & {part.lower() for part in re.split(r"[_.]", path.name)}
        or VAGUE_NAMES & set(path.relative_to(ROOT).parent.parts)
    ]
    assert vague == []


def test_a_module_or_folder_has_a_name_that_no_other_has():
    paths = {path.relative_to(ROOT).with_suffix("") for path in modules().values()}
    paths |= {path.parent for path in paths} - {Path()}
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(paths):
        found[path.name].append(str(path))
    shared = {name: places for name, places in found.items() if len(places) > 1}
    assert set(shared) == set(SHARED_NAMES), shared


def environment_reads(source: str) -> list[int]:
    """Lines that read an environment variable. Setting one, and handing the whole environment to a child process
    (`dict(os.environ)`, `{**os.environ}`, `os.environ.copy()`), is not reading one."""
    reads = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="getenv")) | ast.Call(func=ast.Name(id="getenv")):
                reads.append(node.lineno)
            case ast.Subscript(value=value, ctx=ast.Load()) if _is_environ(value):
                reads.append(node.lineno)
            case ast.Attribute(value=value, attr=attr) if _is_environ(value) and attr not in ("copy", "update"):
                reads.append(node.lineno)
            case ast.Compare(comparators=comparators) if any(_is_environ(value) for value in comparators):
                reads.append(node.lineno)
            case ast.For(iter=value) | ast.comprehension(iter=value) if _is_environ(value):
                reads.append(value.lineno)
    return reads


def _is_environ(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="environ") | ast.Name(id="environ"):
            return True
    return False


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("os.getenv('A')", True),
        ("os.environ['A']", True),
        ("os.environ.get('A', '1')", True),
        ("environ.get('A')", True),
        ("x = 'A' in os.environ", True),
        ("os.environ.pop('A')", True),
        ("for name in os.environ: pass", True),
        ("os.environ['A'] = '1'", False),
        ("del os.environ['A']", False),
        ("os.environ.update(A='1')", False),
        ("run(env={**os.environ, 'A': '1'})", False),
        ("run(env=dict(os.environ))", False),
        ("os.environ.copy()", False),
    ],
)
def test_environment_reads_are_told_from_writes(source: str, reads: bool):
    assert bool(environment_reads(source)) == reads


def test_no_module_reads_an_environment_switch():
    readers = {name: lines for name, path in modules().items() if (lines := environment_reads(path.read_text()))}
    assert set(readers) == set(ENVIRONMENT_READERS), readers


def test_no_kernel_reads_an_environment_switch():
    kernels = [path for path in source_files() if path.suffix in (".cpp", ".h")]
    assert kernels
    assert [
        str(path.relative_to(ROOT)) for path in kernels if re.search(r"\b(secure_)?getenv\b", path.read_text())
    ] == []
