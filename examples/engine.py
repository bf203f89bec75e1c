"""SGLang's engine inside a program of yours, its MoE layers exchanging tokens between two ranks.

python examples/engine.py MODEL
"""

import sys

import sglang

PROMPTS = ["The experts", "The light over the forest", "A letter from the tower"]


def main(model: str) -> None:
    # On a machine without accelerator SGLang runs on the CPU by itself.
    with sglang.Engine(model_path=model, ascend_moe=True, tp_size=2, log_level="error") as engine:
        answers = engine.generate(PROMPTS, {"temperature": 0, "max_new_tokens": 16})
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        print(f"{prompt!r} -> {answer['text']!r} ({answer['meta_info']['completion_tokens']} tokens)")


# The ranks are processes that import this file again: nothing but the program itself may start an engine.
if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/engine.py MODEL")
    main(sys.argv[1])
