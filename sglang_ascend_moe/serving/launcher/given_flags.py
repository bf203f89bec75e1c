"""A command line of SGLang's server, read as its own parser reads it, without importing SGLang, which takes seconds."""

import argparse
import importlib.util
import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any, NamedTuple, NoReturn

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.launcher.declared_flags import add_to, declared_flags, package_folder
from sglang_ascend_moe.serving.launcher.replaced_settings import with_schedule
from sglang_ascend_moe.serving.launcher.suggestions import did_you_mean
from sglang_ascend_moe.serving.options import Options

TESTED = {"sglang": "0.5.23", "smg-grpc-servicer": "0.14.1"}
"""SGLang and the plugin of it that adds flags, in the versions whose every flag a test has compared with what is read
here. With these versions, and no plugin besides this package, a word that is not known is a mistake of the user."""
FLAGS_OF_PLUGINS = ("--servicer-impl", "--metrics-host", "--metrics-port")
"""What smg-grpc-servicer adds, a plugin on which SGLang depends; each takes a value."""
CONFIG_FLAG = "--config"
_MOST_LISTED = 5


class Given(NamedTuple):
    """A command line: `settings` by the names of SGLang's server arguments; `options` None without `--ascend-moe`."""

    settings: argparse.Namespace
    options: Options | None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Of several spellings of a flag the first.
        said = re.sub(r"^argument ([^/:]+)[^:]*", r"\1", message)
        told, could_match, flags = said.partition(" could match ")
        if could_match:
            listed = flags.split(", ")
            more = ", ..." if len(listed) > _MOST_LISTED else ""
            said = f"{told} could match {', '.join(listed[:_MOST_LISTED])}{more}"
        raise InvalidInput(f"{said}; SGLang's --help says what it takes")


@cache
def known_flags() -> frozenset[str]:
    """Every flag of the server, written out, those of this package among them. Raises as `declared_flags`."""
    return frozenset(flag for action in _parser()._actions for flag in action.option_strings)


def flags_of(name: str) -> tuple[str, ...]:
    """The flags that set a setting of SGLang."""
    return next((flag.flags for flag in declared_flags() if flag.name == name), ())


def spellings(flag: str) -> tuple[str, ...]:
    """The flags that set what `flag` sets; only itself if SGLang does not know it."""
    return next((known.flags for known in declared_flags() if flag in known.flags), (flag,))


def read(words: Sequence[str]) -> Given:
    """Reads the flags of `python -m sglang.launch_server`; words that it does not know are passed over.

    Raises `InvalidInput` for a value that the flag cannot have, for a file of `--config` that cannot be used, and as
    `options.from_namespace`; `Unsupported` as `declared_flags`.
    """
    given, _ = _read(words)
    return given


def read_strictly(words: Sequence[str]) -> Given:
    """As `read`. Raises `InvalidInput` also for words that the installed SGLang does not know: see `is_tested`."""
    given, unknown = _read(words)
    if unknown and is_tested():
        raise InvalidInput(
            f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], known_flags())}; SGLang's --help"
            " lists all"
        )
    return given


def is_tested() -> bool:
    """Whether SGLang is of the version whose flags are known here, without a plugin that may add others: `TESTED`."""
    plugins = [plugin.dist for plugin in entry_points(group="sglang.srt.plugins") if plugin.dist is not None]
    installed = {plugin.name: plugin.version for plugin in plugins if plugin.name != "sglang-ascend-moe"}
    try:
        installed["sglang"] = version("sglang")
    except PackageNotFoundError:
        return False
    return installed.items() <= TESTED.items()


def _read(words: Sequence[str]) -> tuple[Given, list[str]]:
    parser = _parser()
    parsed, unknown = parser.parse_known_args(_with_file(parser, list(words)))
    asked = options.from_namespace(parsed)
    return Given(parsed, None if asked is None else with_schedule(parsed, asked)), unknown


@cache
def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False)
    add_to(parser)
    for flag in FLAGS_OF_PLUGINS:
        parser.add_argument(flag)
    options.add_flags(parser)
    return parser


def _with_file(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """`words` with what the file of `--config` says in its place, by SGLang's own code: its module for that imports
    nothing else of SGLang, and is loaded alone."""
    if CONFIG_FLAG not in words:
        return words
    import yaml

    path = package_folder() / "srt/utils/server_args_config_parser.py"
    spec = importlib.util.spec_from_file_location("sglang_config_file", path)
    if spec is None or spec.loader is None or not path.is_file():
        return words
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # It logs what it raises.
    module.logger.disabled = True
    try:
        return list(module.ConfigArgumentMerger(parser).merge_config_with_args(words))
    except (OSError, ValueError, yaml.YAMLError) as error:
        given = words[words.index(CONFIG_FLAG) :][:2]
        raise InvalidInput(f"{' '.join(given)}: {' '.join(str(error).split())}") from error
