"""Lists of small words that help to find the head of a phrase: words that end its noun phrase, and words that name no object themselves.

In the languages listed here, a referring expression names its object first: "the cup below the spoon". The lists hold only the commonest
words. If a word is missing, the cost is mostly that a phrase gets no label, and the reviewer then chooses one.
"""

from __future__ import annotations


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# -- English -------------------------------------------------------------------------------------------------------------------------------

_DETERMINERS = _words("a an the this that these those my your his her its our their some any every each all both another which no")
_RELATIONS = _words(
    "of in on at by to from with without w for as like near beside besides behind before after below above under underneath beneath over",
    "between among amid against along across around inside outside within into onto upon off past through toward towards opposite via",
    "per",
    "beyond atop alongside during about than except but not and or plus nor while when where neither who whom whose what why how if",
    "because",
    "is are was were be being been has have had does do did can will that's who's it's there's i you he she it we they him them me us",
)
_PLACES = _words(
    "left right half middle center centre central leftmost rightmost topmost bottommost uppermost far farthest furthest near nearest",
    "close closer",
    "closest next adjacent first second third fourth fifth last upper lower biggest smallest largest tallest shortest highest lowest",
    "longest",
    "oldest youngest darkest lightest brightest bigger smaller larger taller shorter higher older younger darker lighter brighter",
)
_COLOURS = _words("red green blue yellow white black grey gray brown orange purple pink beige golden silver dark light bright")
_NUMBERS = _words("one two three four five six seven eight nine ten several many few couple")
_SIZES = _words(
    "big small large little tiny huge tall short long high low old young new thin thick fat wide narrow round other same single whole",
    "entire",
)
_REQUESTS = _words("find show segment select mask mark locate detect label highlight please is are there where i me us want need")

SIDES = _words("top bottom back front side sides corner row end edge far very most up down part")
"""Parts of pictures and of objects. At the end of a noun phrase they say where an object is only if a word of AFTER, a number or a single
letter is beside them: "cup bottom left". Alone, as in "cup bottom", they may be the object itself.
"""
VERBS = _words("holding wearing carrying having using touching pushing pulling showing containing featuring facing covering surrounding")
"""Verbs after which another object follows, wherever the verb stands: "holding a cup" does not mean the cup."""
THINGS = _words(
    "building painting ceiling railing clothing earring wedding evening morning awning pudding dumpling duckling sibling sapling",
    "offspring",
    "something anything everything nothing string spring thing swing sling king ring wing",
)
"""Nouns that look like a verb's form in -ing."""
NAMELESS = _words("thing things object objects item items shape shapes one ones")
"""Nouns without a meaning of their own. Before one of them, "cup like" does not mean a cup: "cup like object"."""

# -- other languages -----------------------------------------------------------------------------------------------------------------------

_GERMAN = _words(
    "der die das den dem des ein eine einen einem einer eines alle beide beiden dieser diese dieses zwei drei vier fünf",
    "neben unter über hinter vor zwischen auf im am an bei beim mit ohne von vom zum zur aus um gegenüber nahe für und oder dass",
    "links rechts ganz linke linker linkes linken rechte rechter rechtes rechten mittlere obere untere größte kleinste oben unten",
    "rot rote roter rotes roten blau blaue blauer blaues grün grüne grüner grünes gelb gelbe gelber gelbes weiß weiße weißer weißes",
    "schwarz schwarze schwarzer schwarzes grau graue grauer graues braune brauner braunes große großer großes kleine kleiner kleines",
)
_ROMANCE_DETERMINERS = _words("le la les l un une ce cette ces el los las una unos unas il lo gli uno o os um uma")
_ROMANCE_RELATIONS = _words(
    "de d du des au aux dans sur sous avec sans à près devant derrière entre contre qui que qu dont où et ou en par pour",
    "del al con sin bajo debajo sobre encima junto detrás delante cerca y e di della dello dell dei degli delle da dal dalla nel nella",
    "sul sulla su sotto sopra vicino accanto dietro davanti tra fra che do dos das em sob ao perto atrás com sem",
)
_ROMANCE_AFTER = _words(
    "gauche droite izquierda derecha izquierdo derecho sinistra destra sinistro destro esquerda direita esquerdo direito",
    "rouge rouges bleu bleue bleus bleues vert verte verts vertes jaune jaunes blanc blanche blancs blanches noir noire noirs noires",
    "rojo roja rojos rojas azul azules verde verdes amarillo amarilla blanco blanca negro negra negros negras",
    "rosso rossa rossi rosse giallo gialla bianco bianca nero nera vermelho vermelha amarelo amarela branco branca preto preta",
    "deux trois quatre dos tres cuatro due tre quattro dois duas três",
)
_OTHER_RELATIONS = _words(
    "het een naast onder op met zonder achter voor tussen boven twee",
    "på av bredvid framför bakom foran ved til och og nad pod obok przy za na z",
    "trên dưới trong bên cạnh sau trước của với di pada dengan yang",
    "на под над в за с у рядом возле слева справа между перед около из от и который которая которое для без",
    "على تحت في بجانب من مع فوق أمام خلف عن و الذي التي",
)

# -- what they are used for ----------------------------------------------------------------------------------------------------------------

_ENGLISH = _DETERMINERS | _RELATIONS | _PLACES | _COLOURS | _NUMBERS | _SIZES | _REQUESTS | SIDES
_GERMAN_DETERMINERS = _words("der die das den dem des ein eine einen einem einer eines alle beide dieser diese dieses het een de det")
_GERMAN_RELATIONS = _words(
    "neben unter über hinter vor zwischen auf im am an bei beim mit ohne von vom zum zur aus um gegenüber nahe für und oder dass"
)

GERMAN = (_GERMAN | _words("het een twee naast")) - _ENGLISH
"""Words that show that a phrase is German or Dutch, which write a compound as one word."""
ROMANCE = (_ROMANCE_DETERMINERS | _ROMANCE_RELATIONS | _ROMANCE_AFTER) - _ENGLISH - _GERMAN
FOREIGN = GERMAN | ROMANCE | (_OTHER_RELATIONS - _ENGLISH)
"""Words that show a language in which no noun precedes another noun to describe it, as "cup" does in the English "cup holder"."""

DETERMINERS = _DETERMINERS | _GERMAN_DETERMINERS | _ROMANCE_DETERMINERS
"""Words that begin a noun phrase. After a noun they begin another noun phrase: "the cup the man holds"."""
RELATIONS = _RELATIONS | _GERMAN_RELATIONS | _ROMANCE_RELATIONS | (_OTHER_RELATIONS - _words("het een twee"))
"""Words that end a noun phrase: prepositions, conjunctions, pronouns and auxiliary verbs."""
OF = _words("of de d di del della dei degli delle do da des du von")
"""Words between a quantity and the objects that it counts: "one of the dogs"."""
AND = _words("and or und oder et ou y e o och og и")
PLACES = _PLACES | _words("links rechts linke linker linkes linken rechte rechter rechtes rechten oben unten") | _ROMANCE_AFTER
"""Words that say where an object is, or which of several it is; in the Romance languages, colours and numbers as well."""
NUMBERS = _NUMBERS | _words(
    "ein eine einer eines einen zwei drei vier fünf twee drie un une una uno deux trois quatre dos tres due tre dois"
)
QUANTITIES = NUMBERS | _words(
    "ones some all both each any either neither most none lot lots dozens pair pairs group groups bunch set number crowd herd flock",
    "pack pile stack",
    "collection cluster kind type sort piece pieces slice slices team family swarm paar gruppe paire groupe par grupo gruppo paio",
)
AFTER = (
    PLACES
    | _COLOURS
    | _NUMBERS
    | _words(
        "alone asleep only here there please number no nr ganz full held worn made seen shown kept put hung stuck lit torn cut driven",
        "ridden eaten",
        "thrown caught built drawn",
    )
)
"""Words that may follow an English noun but are no nouns: "cup left", "umbrella held by"."""
LIGHT = PLACES | SIDES | NUMBERS | _COLOURS | _SIZES | _REQUESTS | (_GERMAN - _GERMAN_DETERMINERS - _GERMAN_RELATIONS)
"""Words that describe an object but do not name it, such as places, numbers, colours and sizes."""
