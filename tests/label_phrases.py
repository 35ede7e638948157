"""Phrases with a config's labels and the label that a reviewer would expect: of the thing that the phrase is about, or none.

Each row is (kind, phrase, labels, label). ``FIRST`` was written before the code that answers it, ``SECOND`` after it; see
test_label_phrases.py.
"""

from __future__ import annotations

Row = tuple[str, str, tuple[str, ...], str | None]

CUPS = ("Cup", "Spoon", "Plate")
STREET = ("Person", "Car", "Dog", "Bus", "Motorcycle", "Traffic light")

FIRST: tuple[Row, ...] = (
    # relational: the head comes first
    ("relational", "man on motorcycle", ("man", "motorcycle"), "man"),
    ("relational", "the cup below the spoon", CUPS, "Cup"),
    ("relational", "the dog left of the car", STREET, "Dog"),
    ("relational", "the spoon next to the two cups", CUPS, "Spoon"),
    ("relational", "the person closest to the bus", STREET, "Person"),
    ("relational", "a person who walks a dog", STREET, "Person"),
    ("relational", "the dog that chases a car", STREET, "Dog"),
    ("relational", "woman holding a cup", ("cup", "woman"), "woman"),
    ("relational", "woman holding cup", ("cup", "woman"), "woman"),
    ("relational", "guy wearing hat", ("hat", "shoe"), None),
    ("relational", "the one with the cup", CUPS, None),
    ("relational", "the cup on the plate next to the spoon", CUPS, "Cup"),
    ("relational", "car parked behind the bus", STREET, "Car"),
    ("relational", "second car from the left behind the bus", STREET, "Car"),
    ("relational", "the cup the person holds", ("cup", "person"), "cup"),
    ("relational", "behind the car", STREET, None),
    ("relational", "to the left of the bus", STREET, None),
    ("relational", "reflection of the dog in the mirror", ("dog", "mirror"), None),
    ("relational", "the handle of the cup", CUPS, None),
    ("relational", "on the table, the cup", ("table", "cup"), "cup"),
    # several labels
    ("several", "the traffic light", ("traffic", "traffic light", "light"), "traffic light"),
    ("several", "traffic lights above the cars", ("traffic", "light", "traffic light", "car"), "traffic light"),
    ("several", "cup holder", ("cup", "spoon"), None),
    ("several", "cup holder", ("cup", "holder"), "holder"),
    ("several", "dog house with a dog in it", ("dog", "house"), "house"),
    ("several", "a glass of water", ("water", "glass"), "glass"),
    ("several", "the cup and the spoon", CUPS, "Cup"),
    ("several", "black and white dog near a car", STREET, "Dog"),
    ("several", "the chest of drawers beside the bed", ("chest", "chest of drawers", "bed", "drawer"), "chest of drawers"),
    ("several", "red paper cup", ("cup", "paper cup", "paper"), "paper cup"),
    # where it is, after the noun
    ("place", "the leftmost cup", CUPS, "Cup"),
    ("place", "cup, red", CUPS, "Cup"),
    ("place", "cup number 2", CUPS, "Cup"),
    ("place", "cup on the left", CUPS, "Cup"),
    ("place", "dog bottom right", STREET, "Dog"),
    ("place", "the car (blue)", STREET, "Car"),
    ("place", "on the left the cup", CUPS, "Cup"),
    # plural
    ("plural", "two women", ("man", "woman"), "woman"),
    ("plural", "men on the left", ("man", "woman"), "man"),
    ("plural", "men on the left", ("women", "woman"), None),
    ("plural", "buses", STREET, "Bus"),
    ("plural", "the bus", ("Buses", "Cars"), "Buses"),
    ("plural", "all knives", ("knife", "fork"), "knife"),
    ("plural", "three mice under the table", ("mouse", "table"), "mouse"),
    ("plural", "a child", ("Children", "Adults"), "Children"),
    ("plural", "people waiting for the bus", STREET, "Person"),
    ("plural", "geese in the pond", ("goose", "pond"), "goose"),
    ("plural", "both glasses", ("glass", "bottle"), "glass"),
    # quantities
    ("quantity", "the left of the two cups", CUPS, "Cup"),
    ("quantity", "one of the dogs", STREET, "Dog"),
    ("quantity", "a pair of scissors", ("scissors", "paper"), "scissors"),
    ("quantity", "a group of people near a bus", STREET, "Person"),
    # possessive and the like
    ("possessive", "the dog's bowl", STREET, None),
    ("possessive", "the dog’s bowl", ("dog", "bowl"), "bowl"),
    ("possessive", "the dogs' owner", STREET, None),
    ("possessive", "the cup-like thing", CUPS, None),
    ("possessive", "the man's dog in the car", ("man", "dog", "car"), "dog"),
    # accents
    ("accents", "le vélo rouge", ("ve\u0301lo", "chien"), "ve\u0301lo"),
    ("accents", "ve\u0301los a\u0300 gauche", ("Vélo", "Chien"), "Vélo"),
    ("accents", "das Straßenschild", ("STRASSENSCHILD", "Auto"), "STRASSENSCHILD"),
    ("accents", "ｃｕｐ", CUPS, "Cup"),
    ("accents", "la taza debajo de la cuchara", ("cuchara", "taza"), "taza"),
    # scripts without spaces
    ("cjk", "左の自転車", ("自転車", "犬"), "自転車"),
    ("cjk", "狗旁边的车", ("狗", "车"), "车"),
    ("cjk", "自転車に乗っている男", ("自転車", "男"), "男"),
    ("cjk", "狗的碗", ("狗", "猫"), None),
    ("cjk", "犬小屋", ("犬", "猫"), None),
    ("cjk", "왼쪽에 있는 자전거", ("자전거", "개"), "자전거"),
    ("cjk", "แมวบนโต๊ะ", ("โต๊ะ", "แมว"), "แมว"),
    # German
    ("german", "der Fahrradhelm", ("Fahrrad", "Auto"), None),
    ("german", "der Fahrradhelm", ("Fahrrad", "Helm"), "Helm"),
    ("german", "die Tasse unter dem Löffel", ("Löffel", "Tasse"), "Tasse"),
    ("german", "zwei Hunde neben dem Auto", ("Auto", "Hund"), "Hund"),
    ("german", "der Hund des Mannes", ("Mann", "Hund"), "Hund"),
    ("german", "Tasse links", ("Tasse", "Teller"), "Tasse"),
    # none
    ("none", "a giraffe", STREET, None),
    ("none", "the cupboard", CUPS, None),
    ("none", "left", STREET, None),
    ("none", "the carpet", ("car", "pet"), None),
)
