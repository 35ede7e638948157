"""The demo's tokenizer: each known noun and each number of a coordinate is one token, and words outside the vocabulary are spelled from
pieces of one or two letters that training has seen.
"""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sam4mllm.demo.glyphs import COLOURS, known_nouns
from sam4mllm.demo.wording import IRREGULAR_PLURALS, SIDES
from sam4mllm.prompts.thinking import BEGIN
from sam4mllm.prompts.thinking import END as END_OF_THOUGHT

PAD, UNKNOWN, USER, ASSISTANT, END = "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>", "<|end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL = (PAD, UNKNOWN, USER, ASSISTANT, END, VISION_START, VISION_END, IMAGE)
BEFORE_IMAGE, AFTER_IMAGE = (USER, VISION_START), (VISION_END,)
"""The tokens around the image's own, in every conversation."""
COORDINATES = tuple(f"{value:03d}" for value in range(1000))
WORDS = (
    *("find", "mark", "in", "inside", "outside", "yes", "no", "none", "[", "]", ",", "."),
    *("the", "a", "all", "on", "at", "of", "above", "below", "big", "large", "small"),
    *COLOURS,
    *SIDES,
)
LATER_WORDS = (
    *("thing", "part", "ring", "hollow", "whole", "dark", "light", "front", "behind", "across", "between", "and", "than", "to"),
    *("larger", "smaller", "largest", "smallest", "closest", "is", "this"),
    *("first", "think", "step", "by", "about", "which", "object", "meant", "then", "answer"),
)
"""Words that were added after the first weights had been trained. Their ids come after those of all earlier tokens, so that training can
continue from weights without them.
"""
THOUGHT, THOUGHT_END = BEGIN.strip(), END_OF_THOUGHT.strip()
SPELLED_SHARE = 0.25
"""How often training spells a known noun from pieces instead of using its own token."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _irregular() -> list[str]:
    return sorted({plural for plural in IRREGULAR_PLURALS.values() if plural not in known_nouns()})


def vocabulary() -> list[str]:
    """Every token, in the order of its id."""
    nouns = known_nouns()
    initial = sorted({noun[:2] for noun in nouns})
    inner = sorted({"##" + noun[at : at + 2] for noun in nouns for at in range(1, len(noun) - 1)} | {"##es"})
    letters = [*string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase)]
    first = [*SPECIAL, *COORDINATES, *WORDS, *nouns, *_irregular(), *letters, *initial, *inner]
    return list(dict.fromkeys([*first, *LATER_WORDS, THOUGHT, THOUGHT_END]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=64))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    # not special: decoding drops special tokens, but the tags of a thought are part of the answer's text
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in (THOUGHT, THOUGHT_END)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE},
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


class Speller:
    """Turns phrases into ids for training, now and then spelling a noun from pieces, so that the pieces learn to make up a noun."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._ids = {token: index for index, token in enumerate(vocabulary())}
        self._plain = tokenizer
        self._nouns = {*known_nouns(), *_irregular()}

    def encode(self, phrase: str, rng: np.random.Generator) -> tuple[list[int], dict[str, int]]:
        """Return the ids of the phrase, and for each of its words the index, in these ids, of the word's last token.

        For a word that the phrase has twice it is that of the last occurrence.
        """
        ids: list[int] = []
        ends: dict[str, int] = {}
        for word in phrase.split():
            if word in self._nouns and rng.random() < SPELLED_SHARE:
                ids += self.spell(word, rng)
            else:
                ids += self._plain(word, add_special_tokens=False)["input_ids"]
            ends[word] = len(ids) - 1
        return ids, ends

    def spell(self, word: str, rng: np.random.Generator) -> list[int]:
        """Return the ids of the pieces, of one or two letters each, into which a word of the letters a to z is cut at random."""
        pieces: list[int] = []
        at = 0
        while at < len(word):
            mark = "##" if at else ""
            width = 2 if rng.random() < 0.75 and mark + word[at : at + 2] in self._ids and at + 1 < len(word) else 1
            pieces.append(self._ids[mark + word[at : at + width]])
            at += width
        return pieces


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer's files into a checkpoint folder, in place of those that are there; a missing folder is made."""
    build_tokenizer().save_pretrained(folder)
