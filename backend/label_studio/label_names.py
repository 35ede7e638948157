"""Which of a config's labels a phrase means: the label of its head, the word for the object that the phrase is about.

Examples: a phrase, the name of a label that is found in it, and why.

    "man on motorcycle"        man          the head comes first; what follows a relation only describes it
    "the red paper cup"        paper cup    of several names at the same place, the longest counts
    "cup holder"               none         a noun before a noun describes it; the label "holder" would fit
    "one of the two dogs"      dog          after a quantity and "of", the head is what comes next
    "der Fahrradhelm"          Helm         a German compound ends with its head
    "狗旁边的车"                 车           without spaces, the head comes last

No label is better than a wrong one, because the reviewer can then choose. The time of a look-up does not depend on the number of names.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator

from backend.label_studio.phrase_words import (
    AFTER,
    AND,
    DETERMINERS,
    FOREIGN,
    GERMAN,
    LIGHT,
    NAMELESS,
    NUMBERS,
    OF,
    PLACES,
    QUANTITIES,
    RELATIONS,
    ROMANCE,
    SIDES,
    THINGS,
    VERBS,
)
from backend.label_studio.unspaced import is_unspaced, label_of_unspaced

MAX_NAME = 500
"""The most characters of a name that is looked for, which are also the most of a phrase that is asked."""
MAX_WORDS = 12
"""Words of the longest name that is looked for inside of a phrase."""
MIN_HEAD = 4
"""The fewest letters of a name at the end of a compound: the German "Ei" (egg) ends many words for other things."""

_CODE = re.compile(r"[^\s_]*+_\S*+|[A-Za-z]*+[-.]?+[0-9]++|[A-Za-z]|\W*+")
_PART = re.compile(r"[,;:()\[\]{}\"“”„«»‹›!?|/\n、。・…]|\s[-–—]\s|\.(?=\s|$)")
_ELISION = re.compile(r"\b(l|d|qu|j|n|c|dell|nell|all|sull|dall|un|quell)'(?=\w)")
_HEAD_FIRST = re.compile("[\u0370-\u06ff\u1ea0-\u1ef9ăđơư]")
"""Letters of Greek, Cyrillic, Hebrew, Arabic and Vietnamese. In their languages an adjective may follow its noun, but a noun that describes
another one does not precede it."""
_STRIPPED = string.punctuation + "’‘"

_PLURALS = (
    ("men", "man"), ("children", "child"), ("people", "person"), ("mice", "mouse"), ("lice", "louse"), ("geese", "goose"),
    ("feet", "foot"), ("teeth", "tooth"), ("oxen", "ox"), ("ives", "ife"), ("alves", "alf"), ("elves", "elf"), ("olves", "olf"),
    ("oaves", "oaf"), ("arves", "arf"), ("eaves", "eaf"), ("ooves", "oof"), ("ieves", "ief"), ("ies", "y"), ("ses", "s"), ("xes", "x"),
    ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("oes", "o"), ("eaux", "eau"), ("aux", "al"), ("들", ""),
)  # fmt: skip
"""Endings of plurals and of their singulars, beside the plain s."""
_GERMAN_PLURALS = ("n", "en", "e", "er", "s", "")
_ROMANCE_PLURALS = (("es", ""), ("ones", "ón"), ("ões", "ão"), ("e", "a"), ("i", "o"), ("i", "e"))
_UMLAUTS = str.maketrans("äöü", "aou")


def is_code(name: str) -> bool:
    """Whether a name is a code and no word of any language, such as ``cls_03``, ``7`` or ``A``, or is longer than MAX_NAME."""
    return len(name) > MAX_NAME or _CODE.fullmatch(name.strip()) is not None


class LabelNames:
    """The names of a config's labels, for finding the label of a phrase."""

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        """``names`` are pairs of a name and its label; of two that are spelled alike the first one counts.

        A code (:func:`is_code`) without an underscore is found only where it is the whole phrase. Names longer than MAX_NAME are left out.
        """
        self._exact: dict[str, str] = {}
        self._inside: dict[str, str] = {}
        self._longest = 0
        for name, label in names:
            if len(name) > MAX_NAME:
                continue
            folded = _fold(name)
            key = _key(folded)
            self._exact.setdefault(folded, label)
            if key:
                self._exact.setdefault(key, label)
            if key and ("_" in name or not is_code(name)):
                self._inside.setdefault(key, label)
                self._longest = max(self._longest, min(key.count(" ") + 1, MAX_WORDS))

    def label_for(self, phrase: str) -> str | None:
        """Return the label that has the whole phrase as a name, or else the label of the phrase's head; None if there is none."""
        if len(phrase) > MAX_NAME:
            return None
        folded = _fold(phrase)
        exact = self._exact.get(folded) or self._exact.get(_key(folded))
        if exact is not None:
            return exact
        parts = [part.strip() for part in _PART.split(folded)]
        if is_unspaced(folded):
            return next((label_of_unspaced(part, self._inside) for part in parts if part), None)
        for part in parts:
            words = [word for piece in part.split() if (word := piece.strip(_STRIPPED).replace("-", " ").replace("_", " ").strip())]
            clause = _Clause(words, self._inside, self._longest)
            if clause.has_head:
                return clause.label
        return None


def _fold(text: str) -> str:
    """Return the text in lower case and NFKC, with plain apostrophes, "and" for "&", and elided articles ("l'") as words of their own."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    folded = folded.replace("’", "'").replace("&", " and ")
    return _ELISION.sub(r"\1 ", folded) if "'" in folded else folded


def _key(folded: str) -> str:
    """Return the words of a folded name or phrase, without punctuation and with single spaces."""
    words = (word.strip(_STRIPPED) for word in folded.replace("_", " ").replace("-", " ").split())
    return " ".join(word for word in words if word)


class _Clause:
    """A part of a phrase between punctuation marks. ``label`` is the label of its head, None if that is no label's name.

    A part without ``has_head`` only says where something is.
    """

    def __init__(self, words: list[str], names: dict[str, str], longest: int) -> None:
        """``names`` maps names to labels; ``longest`` is the number of words of the longest name."""
        self._words = words
        self._names = names
        self._longest = longest
        signs = set(words)
        self._german, self._romance = bool(signs & GERMAN), bool(signs & ROMANCE)
        self._head_first = bool(signs & FOREIGN) or any(map(_HEAD_FIRST.search, words))
        self._one_of_many = False
        self._start, end = self._noun_phrase()
        self.has_head = end > self._start
        self.label = self._label(self._start, end) if self.has_head else None

    def _noun_phrase(self) -> tuple[int, int]:
        """Return the first word of the head's noun phrase and the one after its last, as indices; (0, 0) if the clause has none."""
        start, at, named = 0, 0, False
        while at < len(self._words):
            word = self._words[at]
            known = named or self._ends_at(start, at)
            if word in OF and word in RELATIONS and self._is_quantity(start, at):
                start, named = at + 1, False
            elif word in ("like", "looking") and self._words[at + 1 : at + 2] and self._words[at + 1] in NAMELESS:
                named = True
            elif known and (word in RELATIONS or word in DETERMINERS):
                return start, at
            elif self._is_verb(at, known):
                return (start, at) if known else (0, 0)
            elif word in DETERMINERS or word in LIGHT or word[0].isdigit() or (word in AND and at > start):
                pass  # these go on with the noun phrase, and so does "and": "black and white"
            elif word in RELATIONS:
                start = at = self._after_place(at)
                if not at:
                    return 0, 0
            else:
                named = True
            at += 1
        return (start, at) if named or self._ends_at(start, at) else (0, 0)

    def _is_quantity(self, start: int, at: int) -> bool:
        """Whether the words before an "of" only say how much, or which one, of what comes after it: "a pair of …", "the left of …".

        If they say which one, ``_one_of_many`` is set: the head then gets a label only if it is a plural or has a number beside it.
        """
        before = self._words[start:at]
        if not before or self._ends_at(start, at):
            return False
        if before[-1] in QUANTITIES:
            return True
        places = all(word in LIGHT or word in DETERMINERS for word in before) and any(word in PLACES for word in before)
        self._one_of_many = self._one_of_many or places
        return places

    def _is_verb(self, at: int, known: bool) -> bool:
        """Whether a word is a verb, or a form in -ing or -ed after the head that says what it does or what is done to it.

        A word with which a label's name begins is no verb. ``known``: the head is before the word.
        """
        word, after = self._words[at], self._words[at + 1 : at + 2]
        closed = not after or after[0] in RELATIONS or after[0] in DETERMINERS
        participle = len(word) > 4 and word not in THINGS and (word.endswith("ing") or (word.endswith("ed") and closed))
        return (word in VERBS or (known and participle)) and not self._head_first and not self._starts_at(at)

    def _after_place(self, at: int) -> int:
        """Return the index of the determiner that begins the noun phrase after a place, as in "on the left the …".

        ``at`` is the index of the relation, here "on". The result is 0 if the words do not name a place but another object, as in "on the
        table".
        """
        begin = next((index for index in range(at + 1, len(self._words)) if self._words[index] not in LIGHT | DETERMINERS), 0)
        passed = self._words[at + 1 : begin]
        return begin - 1 if passed and passed[-1] in DETERMINERS and any(word in PLACES | SIDES for word in passed) else 0

    def _label(self, start: int, end: int) -> str | None:
        found = self._first(start, end) if self._head_first else self._last(start, end)
        if found is None:
            return None
        label, exact = found
        many = not exact or any(word in NUMBERS or word in ("these", "those", "all", "both") for word in self._words[start:end])
        return label if many or not self._one_of_many else None

    def _first(self, start: int, end: int) -> tuple[str, bool] | None:
        """Find the longest of the names that begin first, else (German, Dutch) a name that ends a compound. Returns as ``_named``."""
        spans = ((begin, until) for begin in range(start, end) for until in range(begin + self._longest, begin, -1))
        found = next((found for begin, until in spans if (found := self._named(begin, until))), None)
        return found or (self._compound(self._words[start:end]) if self._german else None)

    def _last(self, start: int, end: int) -> tuple[str, bool] | None:
        """Find the longest name that ends where the noun phrase ends, or goes on beyond it as "chest of drawers" does.

        Without one, final words such as "left" (``_without_place``) are left out, and it is looked for again. None also if another name
        stands before it (``_has_another``). Returns as ``_named``.
        """
        while end > start:
            begins = range(max(start, end - self._longest), end)
            spans = ((begin, until) for begin in begins for until in range(end, begin + self._longest + 1))
            for begin, until in sorted(spans, key=lambda span: span[0] - span[1]):
                if found := self._named(begin, until):
                    return None if self._has_another(start, begin) else found
            shorter = self._without_place(start, end)
            if shorter == end:
                return None
            end = shorter
        return None

    def _without_place(self, start: int, end: int) -> int:
        """Return the noun phrase's end without final words such as "left", "top right" and "number 2". Words of SIDES alone stay."""
        begin, placed = end, False
        while begin > start and ((word := self._words[begin - 1]) in AFTER or word in SIDES or word[0].isdigit() or len(word) == 1):
            placed = placed or word not in SIDES
            begin -= 1
        return begin if placed else end

    def _has_another(self, start: int, begin: int) -> bool:
        """Whether, from the word at ``start`` on, another name stands before the last name, which begins at ``begin``, and a verb may stand
        between the two, as in "man rides horse".

        Words that are not ASCII do not count as a verb: Korean, for one, has its verb at the end.
        """
        another = next((until for until in range(begin - 1, start, -1) if self._ends_at(start, until)), begin)
        between = self._words[another:begin]
        verb = all(map(str.isascii, between)) and not LIGHT.issuperset(between) and not any("'" in word for word in between)
        return verb and not self._ends_at(start, begin)

    def _ends_at(self, start: int, end: int) -> bool:
        return any(self._named(begin, end) for begin in range(max(start, end - self._longest), end))

    def _starts_at(self, begin: int) -> bool:
        return any(self._named(begin, end) for end in range(begin + 1, begin + self._longest + 1))

    def _named(self, begin: int, end: int) -> tuple[str, bool] | None:
        """Return the label of the name that these words spell, and whether they spell it exactly, not as another form; None without one."""
        if not begin < end <= min(begin + self._longest, len(self._words)):
            return None
        key = " ".join(self._words[begin:end])
        for form in self._forms(key):
            if (label := self._names.get(form)) is not None:
                return label, form == key
        return None

    def _forms(self, key: str) -> Iterator[str]:
        """Yield a name as it is, then its possible singulars and plurals. Not all of these are words."""
        yield key
        if key.endswith("s") and not key.endswith("ss"):
            yield key[:-1]
        yield from (key.removesuffix(many) + one for many, one in _PLURALS if key.endswith(many))
        if self._german:
            stems = [key.removesuffix(ending) for ending in _GERMAN_PLURALS if key.endswith(ending)]
            yield from stems
            # an umlaut alone makes a plural only of words like Apfel, Mutter and Garten: Bär is not the plural of Bar
            yield from (stem.translate(_UMLAUTS) for stem in stems if stem != key or key.endswith(("el", "er", "en")))
        if self._romance:
            yield from (key.removesuffix(many) + one for many, one in _ROMANCE_PLURALS if key.endswith(many))
        if key.startswith("ال"):  # the Arabic article
            yield key[2:]
        if not key.endswith("s"):
            yield key + "s"
        yield from (key.removesuffix(one) + many for many, one in _PLURALS if one and key.endswith(one) and key != "glass")

    def _compound(self, words: list[str]) -> tuple[str, bool] | None:
        """Find the longest name that ends a word, a compound of German or Dutch; the first word that ends with one counts.

        At least three letters come before the name. A name shorter than MIN_HEAD counts only if these letters are a name, too. Returns as
        ``_named``.
        """
        for word in words:
            for begin in range(3, len(word)):
                for form in self._forms(word[begin:]):
                    if (len(form) >= MIN_HEAD or word[:begin] in self._names) and (label := self._names.get(form)) is not None:
                        return label, form == word[begin:]
        return None
