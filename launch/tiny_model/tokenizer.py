"""The tokenizer of the tiny checkpoints: byte-level BPE, made from the text below, without any network."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN_START, TURN_END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TRAINING_TEXT = """\
A mixture of experts is a layer with many small networks and a router that chooses a few of them for every token.
The router looks at the hidden state of the token, gives each expert a score, keeps the best scores and turns them into
weights. The chosen experts transform the token, and their answers are added together with those weights. Because only a
few experts work for each token, the model can hold far more parameters than it spends time on.

When the model no longer fits on one device, its experts are spread over several. Every device then holds some of the
experts and some of the tokens, and before the experts can work the tokens have to travel to them. This is the dispatch.
Afterwards the answers have to travel back to where the tokens came from. This is the combine. Both steps move the same
number of rows, and both steps wait for the slowest device, so the time of the layer is the time of its communication as
much as the time of its arithmetic.

The usual way is to copy the rows into a buffer, to send the buffer, to receive another buffer and to copy the rows out
of it again. Every copy reads and writes the memory once more. When all devices can address the memory of all others,
most of these copies are not needed. A sender that knows how many rows every other sender will write can work out where
each of its own rows belongs, and can write it there at once. The expert reads the row where it was written and leaves
its answer beside it, and the device that owns the token reads the answers and adds them up while it reads.

What must be sent besides the rows is small: how many rows there are for each expert, where they begin, and a number
that says which exchange they belong to. The price is care. No row may be overwritten before its last reader has
finished, no reader may look before the writer has finished, and nobody may wait for ever for a device that has died.

The morning train left the small station near the river at seven. An old teacher sat beside the window, opened a book
and read about the sea, the wind and the long winter of the north. Two children asked her why the sky is blue, and how
birds know the way home. She closed the book, thought for a while, and said that a good question is worth more than a
quick answer. Outside, the green fields, the white houses and the dark forest went by, and the light of the sun was
bright on the water. What is the name of that mountain? Who lives in the tower? When will the rain begin? The children
wrote the numbers one, two, three, four, five, six, seven, eight, nine and ten on a sheet of paper, drew a map of the
city, its streets, its bridges and its gardens, and asked again.

def add(left, right): return left + right
for index in range(10): print(index, add(index, 1))
if value is None: raise ValueError("value must not be None")
"""


def build_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with exactly `vocab_size` ids, the special tokens first.

    Raises ValueError if the training text has too few pairs to fill `vocab_size`.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT.splitlines(keepends=True), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the training text gives {tokenizer.get_vocab_size()} tokens, not vocab_size={vocab_size}; choose fewer"
        )
    return tokenizer


def readable_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids whose text is printable ASCII or white space, so that a model restricted to them writes readable text."""
    special = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    texts = {token_id: tokenizer.decode([token_id]) for token_id in range(tokenizer.get_vocab_size())}
    return [
        token_id
        for token_id, text in texts.items()
        if token_id not in special and text.isascii() and (text.isprintable() or text.isspace())
    ]


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_positions: int) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `transformers.AutoTokenizer` reads them, into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def chat_prompt(question: str) -> str:
    """What CHAT_TEMPLATE makes of one question of a user, up to where the answer begins."""
    return f"{TURN_START}user\n{question}{TURN_END}\n{TURN_START}assistant\n"
