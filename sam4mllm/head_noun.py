"""Which noun an English phrase is about: ``the cup left of the dog`` is about a cup. A rule for short phrases, and when not to trust it."""

from __future__ import annotations

import re
from dataclasses import dataclass

LONG = 10
"""Most words of a phrase for which the rule is trusted. refCOCOg's expressions have 8.4 words on average, refCOCO's 3.6 (Mao et al. 2016,
Yu et al. 2016, table 1), and lead with their noun; ReasonSeg's instructions are longer, and often never name what they ask for (Lai et al.
2024, figure 2)."""


@dataclass(frozen=True)
class HeadNoun:
    """``noun`` in lower case, a word or two, empty if none was found; ``sure``: whether one was found in a phrase of at most LONG words."""

    noun: str
    sure: bool


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    "a an the this that these those all both every each any some no another other others of only just my your his her its our their "
    "one two three four five six seven eight nine ten several many few most"
)
_ADJECTIVES = _words(
    "left right top bottom upper lower middle centre center central front back rear far near nearer close closer outer inner left-hand "
    "right-hand first second third fourth fifth sixth last next whole entire full half single different same visible "
    "red orange yellow green blue purple violet pink brown black white grey gray golden gold silver beige tan teal turquoise navy "
    "dark light bright pale colourful colorful striped plain plaid spotted big bigger large larger huge small smaller little tiny "
    "tall taller short shorter long longer high higher low thick thin wide narrow fat slim round square old older young younger new "
    "empty open dirty clean ripe wooden metal metallic plastic leather fresh wet dry blurry happy sad bald blond blonde female male adult"
)
_PREPOSITIONS = _words(
    "of on in at by to from with without near under below beneath above over behind beside besides between among beyond inside outside "
    "against along across around next facing towards toward through into onto off up down for about within closest nearest left right"
)
"""``left`` and ``right`` are also among the adjectives; as prepositions they end the name only behind a noun (``the cup left of the
dog``)."""
_CLAUSES = _words(
    "that which who whom whose where when while is are was were has have had wears holds looks sits stands held worn seen shown made cut "
    "and or but not"
)
_BEFORE_OF = _words(
    "pair group bunch set row pile stack kind couple lot number piece slice cluster part side edge end front back top bottom middle "
    "all one most some half"
)
"""What stands before ``of`` without being what is meant: ``a pair of shoes``, ``the front of the bus``."""
_ASKING = _words("what which who where why how when if please find segment identify show")
_NO_NOUN = _words(
    "one ones it he she they him them thing things object objects item items something someone anything everything area part side guy's "
    "here there left right top bottom middle me"
)
_NOT_PARTICIPLES = _words(
    "building ceiling painting earring wing ring string king thing pudding railing clothing wedding drawing awning sling spring "
    "swing dressing crossing icing bed shed sled weed seed reed breed steed"
)
_NOT_SUPERLATIVES = _words("forest chest nest guest vest pest west post mast toast roast beast breast request")
_ALSO_NOUNS = _words("orange light square adult male female")
"""Words among the adjectives that are the noun where no noun follows: ``the orange``."""
_AFTER_PARTICIPLE = _words("a an the his her its their my your up down out away back it")


def head_noun(phrase: str) -> HeadNoun:
    """The noun that an English phrase is about, with the noun before it where the two are one name (``tennis racket``).

    Words at the beginning are skipped as long as they only say which one is meant. The phrase is then cut where it goes on to say where the
    thing is, what it does, or what it has. A phrase that begins with a question word or a command (``find``), or holds a question mark,
    gives no noun.
    """
    words = re.findall(r"[^\W_]+(?:[-'’][^\W_]+)*", phrase.lower())
    if words and (words[0] in _ASKING or "?" in phrase):
        return HeadNoun("", False)
    noun = _name(_kernel(words))
    return HeadNoun(noun, bool(noun) and len(words) <= LONG)


def _kernel(words: list[str]) -> list[str]:
    """Return the words of the name: from the first one that may be a part of it to where the phrase is cut. Where these end in a word of
    ``_BEFORE_OF`` and ``of`` follows, as in ``a pair of shoes``, the name is found in the words after ``of`` instead.
    """
    start = 0
    while start < len(words) and _only_tells_which(words, start):
        if words[start] in _ALSO_NOUNS and (start + 1 == len(words) or _cuts(words, start + 1)):
            break
        start += 1
    end = start + 1
    while end < len(words) and not _cuts(words, end):
        end += 1
    kernel = words[start:end]
    if kernel and kernel[-1] in _BEFORE_OF and words[end : end + 1] == ["of"]:
        return _kernel(words[end + 1 :])
    return kernel


def _only_tells_which(words: list[str], at: int) -> bool:
    """Whether the word at an index is a determiner, an adjective, or the like before the name. ``front`` in ``the front of the bus`` is
    not, because ``of`` follows it.
    """
    word, following = words[at], words[at + 1 : at + 2]
    if word in _BEFORE_OF and following == ["of"]:
        return False
    return word in _DETERMINERS or word in _ADJECTIVES or word.isdigit() or (bool(following) and _looks_like_adjective(word))


def _looks_like_adjective(word: str) -> bool:
    if word.endswith("'s") or word.endswith("’s") or word.endswith("most"):
        return True
    return _is_participle(word) or (word.endswith("est") and word not in _NOT_SUPERLATIVES)


def _is_participle(word: str) -> bool:
    return word.endswith(("ing", "ed")) and len(word) > 4 and word not in _NOT_PARTICIPLES


def _cuts(words: list[str], at: int) -> bool:
    """Whether the name has ended before this word."""
    word, following = words[at], words[at + 1 : at + 2]
    if word in _PREPOSITIONS or word in _CLAUSES or word in _DETERMINERS:
        return True
    ends = not following or following[0] in _PREPOSITIONS or following[0] in _AFTER_PARTICIPLE
    return _is_participle(word) and (ends or word.endswith("ing"))


def _name(kernel: list[str]) -> str:
    """Return the last word of the name, with the one before it unless that is an adjective or a determiner.

    The result is empty if there is no word, or if the last one can stand for any thing (``thing``, ``one``), is a preposition, or is not
    ASCII.
    """
    if not kernel or kernel[-1] in _NO_NOUN or kernel[-1] in _PREPOSITIONS or not kernel[-1].isascii():
        return ""
    before = kernel[-2:-1]
    if before and (before[0] in _ADJECTIVES or before[0] in _DETERMINERS or _looks_like_adjective(before[0])):
        before = []
    return " ".join([*before, kernel[-1]])
