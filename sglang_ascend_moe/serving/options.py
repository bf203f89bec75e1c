"""The `--ascend-moe` flags, the keyword arguments of `sglang.Engine` and the one struct that both become.

This module is also the one declared place where the options ride to SGLang's workers: `attach` and `options_of`.
"""

import argparse
import re
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.windows.layout import MAX_TIMEOUT_S

Schedule = Literal["auto", "decode", "prefill", "collective"]
Quant = Literal["none", "int8"]
Windows = Literal["memfabric", "aclshmem"]

WINDOW_FACTOR = 2.0
"""Windows hold so many times the rows that a rank receives of the largest prefill batch if all receive alike."""
MAX_WINDOW_FACTOR = 1024

ASK_FLAG = "--ascend-moe"
ASK_KEYWORD = "ascend_moe"

# Keys of a worker's ready message: SGLang's for the times of the start, and among those that its exchange is open.
STARTUP_TIMES = "startup_time"
READY_KEY = "ascend_moe"

# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_options"

_SUFFIXES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for. Raises `InvalidInput`, naming the flag, when a value cannot be used.

    max_tokens: most tokens that one rank brings to one MoE layer; None: computed from the limits of the scheduler.
    window_bytes: bytes of one rank's window, everything included; None: what `sizing.sized` says.
    window_factor: in place of `WINDOW_FACTOR`.
    timeout_s: seconds that a rank waits for a peer; bring_up_timeout_s: while the server starts.
    verify: send a checksum with every row.
    post_mortem: folder for an account of each rank after a failure.
    trace: folder in which each rank writes down its steps.
    windows: on an NPU, who gives pooled memory; None: what is installed, memfabric first.
    secret_file: file with the secret under which control blocks are sealed.
    require_graphs: do not serve if decode steps cannot run in graphs.
    mixed_sizes: prefill and decode instances of one deployment may have different numbers of ranks.
    host_memory: on a host, bytes that all ranks of the server may take together; None: what is left.
    stay_awake: on a host idle ranks look for requests without a pause, in place of sleeping.
    strict_version: refuse a release of SGLang that was never tested, even if every hook applies.
    """

    schedule: Schedule = "auto"
    max_tokens: int | None = None
    window_bytes: int | None = None
    window_factor: float | None = None
    quant: Quant = "none"
    timeout_s: float = 30.0
    bring_up_timeout_s: float = 300.0
    verify: bool = False
    post_mortem: str | None = None
    trace: str | None = None
    windows: Windows | None = None
    secret_file: str | None = None
    require_graphs: bool = False
    mixed_sizes: bool = False
    host_memory: int | None = None
    stay_awake: bool = False
    strict_version: bool = False

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise InvalidInput(_bad_choice("schedule", self.schedule, get_args(Schedule)))
        if self.quant not in get_args(Quant):
            raise InvalidInput(_bad_choice("quant", self.quant, get_args(Quant)))
        if self.windows is not None and self.windows not in get_args(Windows):
            raise InvalidInput(_bad_choice("windows", self.windows, get_args(Windows)))
        for name in ("max_tokens", "window_bytes", "host_memory"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInput(f"{FLAGS[name].flag} {value}: must be at least 1")
        if self.window_factor is not None and not 1 <= self.window_factor <= MAX_WINDOW_FACTOR:
            raise InvalidInput(
                f"{FLAGS['window_factor'].flag} {self.window_factor}: must be from 1 to {MAX_WINDOW_FACTOR}"
            )
        if self.window_factor is not None and self.window_bytes is not None:
            raise InvalidInput(
                f"{FLAGS['window_factor'].flag} with {FLAGS['window_bytes'].flag}: each says how large windows are;"
                " leave one of them out"
            )
        if self.window_factor is not None and self.schedule == "decode":
            raise InvalidInput(
                f"{FLAGS['window_factor'].flag} with {FLAGS['schedule'].flag} decode: it has no rounds, so a window"
                " holds all; leave one of them out"
            )
        for name in ("timeout_s", "bring_up_timeout_s"):
            if not 0 < getattr(self, name) <= MAX_TIMEOUT_S:
                raise InvalidInput(
                    f"{FLAGS[name].flag} {getattr(self, name)}: must be above 0 and at most {MAX_TIMEOUT_S} seconds"
                )
        of_windows = (
            "window_bytes",
            "window_factor",
            "quant",
            "verify",
            "post_mortem",
            "trace",
            "windows",
            "secret_file",
        )
        for name in of_windows:
            if getattr(self, name) not in (None, False, "none") and self.schedule == "collective":
                raise InvalidInput(
                    f"{FLAGS[name].flag} with {FLAGS['schedule'].flag} collective: the baseline has only what"
                    " torch.distributed has; leave one of them out"
                )


class Flag(NamedTuple):
    """One flag: its name, the type of its value, how text becomes one, its metavar and its help.

    A flag of type bool takes no value on the command line.
    """

    flag: str
    type: type
    parse: Callable[[str], Any]
    metavar: str
    help: str

    @property
    def keyword(self) -> str:
        """The same option as a keyword argument of `sglang.Engine` and as a key of SGLang's `--config` file."""
        return self.flag.removeprefix("--").replace("-", "_")


def parse_bytes(text: str, name: str = "window_bytes") -> int:
    """Bytes from `4096`, `64MiB`, `1.5GiB` or `100MB`. Raises `InvalidInput`, naming the flag of option `name`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _SUFFIXES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise InvalidInput(
            f"{FLAGS[name].flag} {text!r}: write a number of bytes such as 67108864, 64MiB, 1.5GiB or 100MB"
        )
    if "." not in match[1]:
        return int(match[1]) * unit
    return round(float(match[1]) * unit)


def _number(name: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return convert(text)
        except ValueError:
            raise InvalidInput(f"{FLAGS[name].flag} {text!r}: not a number") from None

    return parse


def _switch(name: str) -> Callable[[str], Any]:
    def parse(text: str) -> bool:
        raise InvalidInput(f"{FLAGS[name].flag} {text!r}: must be True or False")

    return parse


def _bad_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    return f"{FLAGS[name].flag} {value!r}: choose one of {', '.join(choices)}"


FLAGS: Mapping[str, Flag] = {
    "schedule": Flag(
        "--ascend-moe-schedule",
        str,
        str,
        "{" + ",".join(get_args(Schedule)) + "}",
        "How tokens travel. auto (the default): the decode schedule for decode batches, the prefill schedule when any"
        " rank prefills. collective: the buffer-centric baseline over torch.distributed, never chosen by auto.",
    ),
    "max_tokens": Flag(
        "--ascend-moe-max-tokens",
        int,
        _number("max_tokens", int),
        "TOKENS",
        "Most tokens that one rank brings to one MoE layer. Default: computed from --chunked-prefill-size (or"
        " --max-prefill-tokens) and --max-running-requests.",
    ),
    "window_bytes": Flag(
        "--ascend-moe-window-bytes",
        int,
        parse_bytes,
        "BYTES",
        "Size of each rank's window in total, for example 64MiB, in place of --ascend-moe-window-factor. A smaller"
        " window makes prefill take more rounds; the server does not start with one that cannot hold the largest decode"
        " batch.",
    ),
    "window_factor": Flag(
        "--ascend-moe-window-factor",
        float,
        _number("window_factor", float),
        "FACTOR",
        "Windows hold so many times the rows that each rank receives of the largest prefill batch if all receive alike,"
        " and always the largest decode batch; uneven batches that need more take rounds, with the same results."
        f" Default: {WINDOW_FACTOR:g}.",
    ),
    "quant": Flag(
        "--ascend-moe-quant",
        str,
        str,
        "{" + ",".join(get_args(Quant)) + "}",
        "Format of the rows that travel to the experts. none (the default): the model's dtype. int8: a byte per element"
        " and a scale per row; half the bytes, and results that differ a little. Results travel in the model's dtype.",
    ),
    "timeout_s": Flag(
        "--ascend-moe-timeout",
        float,
        _number("timeout_s", float),
        "SECONDS",
        "How long a rank waits for a peer before the server stops and names it. Default: 30.",
    ),
    "bring_up_timeout_s": Flag(
        "--ascend-moe-bring-up-timeout",
        float,
        _number("bring_up_timeout_s", float),
        "SECONDS",
        "How long a rank that has loaded its part of the model waits for the others before the server stops and names"
        " those that are missing. Default: 300.",
    ),
    "verify": Flag(
        "--ascend-moe-verify",
        bool,
        _switch("verify"),
        "",
        "Send a checksum with every row and stop the server when a row does not arrive as it was sent.",
    ),
    "post_mortem": Flag(
        "--ascend-moe-post-mortem",
        str,
        str,
        "FOLDER",
        "Where each rank writes an account if an exchange fails; `ascend-moe doctor --post-mortem FOLDER` reads them.",
    ),
    "trace": Flag(
        "--ascend-moe-trace",
        str,
        str,
        "FOLDER",
        "Where each rank writes down the steps of its exchanges, for each shape of layer the last 131,072 events;"
        " `ascend-moe trace FOLDER` makes a timeline of them.",
    ),
    "windows": Flag(
        "--ascend-moe-windows",
        str,
        str,
        "{" + ",".join(get_args(Windows)) + "}",
        "With --device npu: the library that gives windows in pooled memory. Default: the one that is installed,"
        " memfabric before aclshmem.",
    ),
    "secret_file": Flag(
        "--ascend-moe-secret-file",
        str,
        str,
        "FILE",
        "Ranks, and prefill and decode instances, seal the control blocks that travel over a network under the secret"
        " in this file, and refuse others. At least 32 bytes, mode 0600, the same wherever the flag is given.",
    ),
    "require_graphs": Flag(
        "--ascend-moe-require-graphs",
        bool,
        _switch("require_graphs"),
        "",
        "Do not serve if decode steps cannot run in graphs. Without it such a server warns and runs them one by one.",
    ),
    "mixed_sizes": Flag(
        "--ascend-moe-mixed-sizes",
        bool,
        _switch("mixed_sizes"),
        "",
        "Prefill and decode instances of one deployment may differ in their numbers of ranks; give it to both. Results"
        " then differ a little from those of one server.",
    ),
    "host_memory": Flag(
        "--ascend-moe-host-memory",
        int,
        lambda text: parse_bytes(text, "host_memory"),
        "BYTES",
        "With --device cpu: bytes of this machine that all ranks of the server may take together, for example 12GiB."
        " Default: what the machine or its container has left, less a reserve and what other servers have reserved.",
    ),
    "stay_awake": Flag(
        "--ascend-moe-stay-awake",
        bool,
        _switch("stay_awake"),
        "",
        "With --device cpu: idle ranks look for requests without a pause. Without it they sleep (--sleep-on-idle),"
        " because each would burn a core.",
    ),
    "strict_version": Flag(
        "--ascend-moe-strict-version",
        bool,
        _switch("strict_version"),
        "",
        "Refuse a release of SGLang that was never tested. Without it such a release is served, with a warning, if"
        " everything that is changed in SGLang is there as expected.",
    ),
}


def add_flags(parser: argparse.ArgumentParser, ask_action: Any = "store_true") -> None:
    """Add the flags to SGLang's parser. `ask_action` is the argparse action of `--ascend-moe` itself."""
    group = parser.add_argument_group("expert-parallel exchange without relay buffers (sglang-ascend-moe)")
    group.add_argument(
        ASK_FLAG,
        action=ask_action,
        default=False,
        help="Let the MoE layers exchange tokens without relay buffers; the expert-parallel size becomes --tp-size.",
    )
    for item in FLAGS.values():
        if item.type is bool:
            group.add_argument(item.flag, dest=item.keyword, action="store_true", default=None, help=item.help)
            continue
        # Values stay text here: `from_values` parses flags and keyword arguments alike, with the same messages.
        group.add_argument(item.flag, dest=item.keyword, metavar=item.metavar, default=None, help=item.help)


def from_namespace(namespace: argparse.Namespace) -> Options | None:
    """Options of a parsed command line, or None when `--ascend-moe` was not given.

    Raises `InvalidInput` for a wrong value and for an `--ascend-moe-*` flag without `--ascend-moe`.
    """
    keywords = {name: value for name, value in vars(namespace).items() if name.startswith(ASK_KEYWORD)}
    return take_keywords(keywords)


def take_keywords(keywords: MutableMapping[str, Any]) -> Options | None:
    """Remove the `ascend_moe*` keywords of `sglang.Engine` from `keywords` and return them as options.

    Values may be of the option's type or text as on the command line. Raises like `from_namespace`.
    """
    asked = keywords.pop(ASK_KEYWORD, False)
    if not isinstance(asked, bool):
        raise InvalidInput(f"{ASK_KEYWORD}={asked!r}: must be True or False")
    given = {}
    for field, item in FLAGS.items():
        value = keywords.pop(item.keyword, None)
        if value is not None and value is not False:
            given[field] = value
    if not asked:
        for field in given:
            raise InvalidInput(f"{FLAGS[field].flag} has no effect without {ASK_FLAG}: give both or neither")
        return None
    return _from_values(given)


def _from_values(given: Mapping[str, Any]) -> Options:
    values: dict[str, Any] = {}
    for field, value in given.items():
        wanted = FLAGS[field].type
        parsed = FLAGS[field].parse(value) if isinstance(value, str) else value
        if wanted is float and type(parsed) is int:
            parsed = float(parsed)
        # Not isinstance: True is an int.
        if type(parsed) is not wanted:
            raise InvalidInput(f"{FLAGS[field].flag} {value!r}: must be of type {wanted.__name__}")
        values[field] = parsed
    return Options(**values)


def to_flags(options: Options) -> list[str]:
    """The command line that asks for `options`, every value written out."""
    flags = [ASK_FLAG]
    for field, item in FLAGS.items():
        value = getattr(options, field)
        if value is True:
            flags.append(item.flag)
        elif value is not None and value is not False:
            # As one word, since a folder may begin with a dash. repr of a float gives the same float back.
            flags.append(f"{item.flag}={value!r}" if isinstance(value, float) else f"{item.flag}={value}")
    return flags


def attach(server_args: Any, options: Options) -> None:
    """Let `options` ride on SGLang's server arguments, into every process that gets them."""
    setattr(server_args, _ATTRIBUTE, options)


def options_of(server_args: Any) -> Options | None:
    """The options that ride on SGLang's server arguments, or None when `--ascend-moe` was not asked for."""
    return getattr(server_args, _ATTRIBUTE, None)
