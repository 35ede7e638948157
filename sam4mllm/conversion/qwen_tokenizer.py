"""The tokenizer of Qwen-VL-Chat, built from its tiktoken file: a byte-level BPE that gives the same tokens without the package tiktoken."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sam4mllm.errors import ModelError
from sam4mllm.qwen_vl_chat.config import IMAGE_TOKEN

FILE = "qwen.tiktoken"
MAX_BYTES = 64 << 20
"""The largest file that is read; the published one has 2.6 MB."""
LONGEST = 1024
"""The most bytes of a token that is accepted; the published ones have up to 128."""

END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_BEGINS, IMAGE_ENDS = "<img>", "</img>"
SPECIAL = (
    *(END_OF_TEXT, TURN_BEGINS, TURN_ENDS),
    *(f"<|extra_{number}|>" for number in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", IMAGE_BEGINS, IMAGE_ENDS, IMAGE_TOKEN),
)
"""The control tokens. Their ids follow those of the file's tokens, in this order. With the published file they begin at 151,643, and the id
of ``<img>`` is 151,857.
"""

_WORDS = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  # English contractions in any case
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # letters, with a space or a mark before them
        r"\p{N}",  # every digit alone
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",  # punctuation, with the line breaks after it
        r"\s*[\r\n]+",
        r"\s+(?!\S)",  # white space without its last character, which goes with the next word
        r"\s+",
    )
)
"""Matches the pieces into which a text is split first; tokens never cross their borders. As published with the tokenizer."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% set pictures = namespace(count=0) %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{% set pictures.count = pictures.count + 1 %}"
    "Picture {{ pictures.count }}: " + IMAGE_BEGINS + IMAGE_TOKEN + IMAGE_ENDS + "\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML, with pictures numbered as in the paper's examples (Qwen-VL, arXiv 2308.12966, section 3.3 and appendix B)."""


def build_tokenizer(path: Path, length: int) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer of the file ``path``, with control tokens and chat template; ``length`` is its ``model_max_length``.

    Raises ModelError as ``read_ranks`` does.
    """
    ranks = read_ranks(path)
    letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [(spelled[left], spelled[right]) for left, right in find_merges(ranks)]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=TURN_ENDS,
        pad_token=END_OF_TEXT,
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def read_ranks(path: Path) -> dict[bytes, int]:
    """Read a tiktoken file, which has on each line a token in base64 and its rank; the rank is the token's id and its priority in merging.

    Raises ModelError if the file cannot be read or has more than MAX_BYTES, a line is malformed, the ranks are not the numbers from 0 on,
    each of one token, a token has no byte or more than LONGEST, or one of the 256 bytes has no token of its own.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); fetch it with the model's other files") from error
    if len(data) > MAX_BYTES:
        raise ModelError(f"{path} is over {MAX_BYTES:,} bytes; fetch it again")
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ModelError(f"{path}: line {number} is no token in base64 with its rank; fetch the file again") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(0 < len(token) <= LONGEST for token in ranks):
        raise ModelError(f"{path}: its ranks are not the numbers from 0 on, each of one token; fetch the file again")
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise ModelError(f"{path} has not a token for every byte; fetch the file again")
    return ranks


def find_merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return all pairs of tokens that joined are a token, ordered by the rank of that token.

    All pairs are needed because tiktoken merges any pair whose join is a token.
    """
    merges: list[tuple[bytes, bytes]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
