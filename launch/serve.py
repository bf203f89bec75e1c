"""`ascend-moe serve`: SGLang's server, with `--ascend-moe` given."""

import argparse
import os
import sys

from sglang_ascend_moe import hooks, options
from sglang_ascend_moe.arguments import refuse_machine
from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.exit_codes import CANNOT, OK, WRONG_USAGE
from sglang_ascend_moe.platforms import activate

DESCRIPTION = "SGLang's server, its MoE layers exchanging tokens through sglang-ascend-moe."
EPILOG = "Every flag of `sglang serve` works as well; `python -m sglang.launch_server --help` lists all of them."


def main(arguments: list[str]) -> int:
    """Serve until the server is stopped. Returns 2 if SGLang or we refuse the flags, 3 if this machine cannot serve."""
    if any(argument in ("-h", "--help") for argument in arguments):
        help_parser().print_help()
        return OK
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args
    from sglang.srt.utils import kill_process_tree

    load_plugins()
    try:
        hooks.require_all()
    except AscendMoeError as error:
        return _refused(error, CANNOT)
    try:
        server_args = prepare_server_args(server_arguments(arguments))
    except AscendMoeError as error:
        return _refused(error, WRONG_USAGE)
    try:
        refuse_machine(server_args)
    except AscendMoeError as error:
        return _refused(error, CANNOT)
    try:
        run_server(server_args)
    except AscendMoeError as error:
        return _refused(error, WRONG_USAGE)
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    return OK


def help_parser() -> argparse.ArgumentParser:
    """A parser that knows our flags only, for `--help`."""
    parser = argparse.ArgumentParser(
        prog="ascend-moe serve", usage="ascend-moe serve MODEL [flags]", description=DESCRIPTION, epilog=EPILOG
    )
    options.add_flags(parser)
    return parser


def server_arguments(arguments: list[str]) -> list[str]:
    """The command line of SGLang's server: ours, the model by flag, and the CPU where there is nothing else."""
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--model-path")
    if options.ASK_FLAG not in given:
        given.append(options.ASK_FLAG)
    if activate() is not None and not any(item.split("=")[0] == "--device" for item in given):
        given += ["--device", "cpu"]
    return given


def _refused(error: AscendMoeError, code: int) -> int:
    print(f"ascend-moe serve: {error}", file=sys.stderr)
    return code
