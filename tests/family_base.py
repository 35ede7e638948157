"""A tiny random checkpoint of a family, in parts that all families share: its tokenizer, its template's shape and how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sam4mllm.prompts.dialects import Dialect
from tests.conftest import TEXT

PHRASES = ("the left cup", "all zebras", "the dog below the car")
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}

Save = Callable[[Path, PreTrainedTokenizerFast, dict[str, Any]], None]
"""Writes a checkpoint into a folder, with a tokenizer and the settings of a text model."""
Template = str


def chatml(image: str, user: str = "\\n") -> Template:
    """Qwen's shape, which OneVision and InternVL share with another placeholder."""
    return (
        "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' if turn['role'] != 'user' else '<|im_start|>user"
        + user
        + "' }}"
        "{% for part in turn['content'] %}{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


@dataclass(frozen=True)
class Kind:
    """One row of the table: a family with one of its text models."""

    model_type: str
    dialect: Dialect
    template: Template
    special: tuple[str, ...]
    end: str
    image: str
    save: Save
    first: str | None = None
    sentencepiece: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    text_type: str = ""
    """Of the text model, where it has other layers than most."""


def make_family(kind: Kind, folder: Path) -> Path:
    """Write the checkpoint of a kind. The same weights and files each time."""
    torch.manual_seed(7)
    tokenizer = build_tokenizer(kind)
    text = {
        **{key: value for key, value in TEXT.items() if key != "rope_parameters"},
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    kind.save(folder, tokenizer, text)
    return folder


def build_tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """A small BPE of the family's sort: on bytes, or on characters with a mark for spaces."""
    special = list(dict.fromkeys(["<pad>", *([kind.first] if kind.first else []), kind.end, kind.image, *kind.special]))
    if kind.sentencepiece:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        special = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet: list[str] = []
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    dialect = kind.dialect
    words = [dialect.yes, dialect.no, dialect.no_target, *PHRASES, "assistant", "user"]
    corpus = [*words * 20, dialect.box_question, dialect.points_head, *(str(number) for number in range(100))]
    trainer = trainers.BpeTrainer(vocab_size=len(special) + 420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    added = [token for token in special if not token.startswith("<0x")]
    if kind.first:  # which such tokenizers write by themselves
        ids = [(kind.first, special.index(kind.first))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{kind.first} $A", special_tokens=ids)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token=kind.end,
        bos_token=kind.first,
        extra_special_tokens=kind.extra,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = kind.template
    return fast
