"""`ascend-moe serve`: SGLang's server, with `--ascend-moe` given."""

import argparse
import sys

from sglang_ascend_moe.errors import AscendMoeError, Unsupported
from sglang_ascend_moe.launch.servers.memory_check import check_memory
from sglang_ascend_moe.launch.servers.preflight import check_device, check_server
from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.launcher.declared_flags import package_folder
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, OK, WRONG_USAGE

DESCRIPTION = "SGLang's server, its MoE layers exchanging tokens through sglang-ascend-moe."
EPILOG = "Every flag of `sglang serve` works as well; `python -m sglang.launch_server --help` lists all of them."


def main(arguments: list[str]) -> int:
    """Serve until the server is stopped. Returns 2 for what is wrong before anything is imported, 3 without SGLang.

    Raises SystemExit: 2 if SGLang or we refuse the flags, 3 if this machine cannot serve.
    """
    if any(argument in ("-h", "--help") for argument in arguments):
        help_parser().print_help()
        return OK
    words = server_arguments(arguments)
    try:
        package_folder()
    except Unsupported as error:
        return _refused(error, CANNOT)
    try:
        request = check_server(words, "MODEL" if words[1:2] == arguments[:1] else None)
    except AscendMoeError as error:
        return _refused(error, WRONG_USAGE)
    try:
        check_device(request)
        check_memory([request])
    except Unsupported as error:
        return _refused(error, CANNOT)
    from sglang_ascend_moe.launch.servers.sglang_server import serve

    return serve(words)


def help_parser() -> argparse.ArgumentParser:
    """A parser that knows our flags only, for `--help`."""
    parser = argparse.ArgumentParser(
        prog="ascend-moe serve", usage="ascend-moe serve MODEL [flags]", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_flags(parser)
    return parser


def server_arguments(arguments: list[str]) -> list[str]:
    """The command line of SGLang's server: ours, and the model by flag."""
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--model-path")
    if options.ASK_FLAG not in given:
        given.append(options.ASK_FLAG)
    return given


def _refused(error: AscendMoeError, code: int) -> int:
    print(f"ascend-moe serve: {' '.join(str(error).split())}", file=sys.stderr)
    return code
