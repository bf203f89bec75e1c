"""requirements.lock pins everything, names no place to download from, and is what the environment holds."""

import re
import tomllib
from importlib import metadata

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.packaging.source_tree import ROOT

LOCK = ROOT / "requirements.lock"
PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;]+)( ; (?P<marker>[^\\]+?))? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
COMMENT = re.compile(r"\s*#.*")


def pins() -> dict[str, Version]:
    """Distribution -> version, of the pins that apply to this machine."""
    found = {}
    for line in LOCK.read_text().splitlines():
        if (match := PIN.fullmatch(line)) and (match["marker"] is None or Marker(match["marker"]).evaluate()):
            found[canonicalize_name(match["name"])] = Version(match["version"])
    return found


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, with what is needed to develop it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]


def unmet(requirement: Requirement, locked: dict[str, Version]) -> bool:
    version = locked.get(canonicalize_name(requirement.name))
    return version is None or not requirement.specifier.contains(version, prereleases=True)


def test_every_line_is_a_pin_a_hash_or_a_comment():
    lines = LOCK.read_text().splitlines()
    assert [line for line in lines if not any(kind.fullmatch(line) for kind in (PIN, HASH, COMMENT))] == []


def test_lock_names_no_address():
    assert re.findall(r"\S*(?:://|file:|git\+|--\S*index\S*|--find-links)\S*", LOCK.read_text()) == []


def test_lock_has_sglang_at_the_version_that_is_tested():
    assert pins()["sglang"] == Version("0.5.23")


def test_lock_meets_what_the_project_declares():
    locked = pins()
    assert [str(requirement) for requirement in declared() if unmet(requirement, locked)] == []


def test_lock_is_complete():
    locked = pins()
    missing = []
    for name in locked:
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and canonicalize_name(requirement.name) not in locked:
                missing.append(f"{name} needs {requirement}")
    assert missing == []


def test_environment_is_what_the_lock_says():
    locked = pins()
    assert locked == {name: Version(metadata.version(name)) for name in locked}
