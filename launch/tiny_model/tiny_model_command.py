"""`python -m sglang_ascend_moe.launch.tiny_model`: a small checkpoint, written."""

import sys
from pathlib import Path

from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.tiny_model.model_sizes import FAMILY_NAMES, TRAINED_FAMILIES
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.output_folders import problem_with_folder

PROGRAM = "python -m sglang_ascend_moe.launch.tiny_model"


def main(arguments: list[str]) -> int:
    """Write one checkpoint and print where it is. Returns 2 for a folder that cannot be written."""
    parser = Parser(prog=PROGRAM, description="Write a small MoE checkpoint, random or trained, with a tokenizer.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if it is not there")
    parser.add_argument(
        "--family", choices=sorted(FAMILY_NAMES), default="qwen3_moe", help="of models (default qwen3_moe)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")
    parser.add_argument(
        "--trained", action="store_true", help=f"one that sorts, copies and adds digits ({', '.join(TRAINED_FAMILIES)})"
    )
    parsed = parser.parse_args(arguments)
    if parsed.trained and parsed.family not in TRAINED_FAMILIES:
        parser.error(f"--trained: no {parsed.family} has been trained; choose --family {' or '.join(TRAINED_FAMILIES)}")
    if problem := problem_with_folder(parsed.folder):
        print(f"{PROGRAM}: {parsed.folder}: {problem}; give a folder to write into", file=sys.stderr)
        return WRONG_USAGE
    if parsed.trained:
        from sglang_ascend_moe.launch.tiny_model.trained import write_trained

        print(write_trained(parsed.folder, parsed.family))
        return OK
    from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint

    print(write_checkpoint(parsed.folder, parsed.family, seed=parsed.seed))
    return OK
