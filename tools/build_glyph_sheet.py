"""Draw the demo's glyph sheet from the Noto Color Emoji font.

    python tools/build_glyph_sheet.py [FONT]

This is run only to change the choice of glyphs: the sheet is committed, so that making scenes needs no font. Writes ``glyphs.png`` (a grid
of square RGBA cells) and ``glyphs.json`` (one entry for each cell, in reading order) into ``sam4mllm/demo/assets``.
"""

from __future__ import annotations

import json
import sys
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
ASSETS = Path(__file__).parent.parent / "sam4mllm" / "demo" / "assets"
FONT_SIZE = 109  # the only strike in the font
CELL = 104
COLUMNS = 24

KNOWN = {
    "apple": "🍎", "banana": "🍌", "tomato": "🍅", "carrot": "🥕", "bread": "🍞", "cake": "🍰", "pizza": "🍕", "cheese": "🧀",
    "cherry": "🍒", "lemon": "🍋", "pear": "🍐", "pineapple": "🍍", "strawberry": "🍓", "mushroom": "🍄", "corn": "🌽", "burger": "🍔",
    "cup": "🍵", "dog": "🐕", "cat": "🐈", "horse": "🐎", "cow": "🐄", "pig": "🐖", "sheep": "🐑", "rabbit": "🐇",
    "elephant": "🐘", "monkey": "🐒", "duck": "🦆", "owl": "🦉", "frog": "🐸", "turtle": "🐢", "snake": "🐍", "fish": "🐟",
    "crab": "🦀", "butterfly": "🦋", "snail": "🐌", "spider": "🕷", "car": "🚗", "bus": "🚌", "truck": "🚚", "bicycle": "🚲",
    "train": "🚂", "rocket": "🚀", "key": "🔑", "hammer": "🔨", "guitar": "🎸", "drum": "🥁", "trumpet": "🎺", "camera": "📷",
    "phone": "📱", "book": "📕", "umbrella": "☂", "hat": "🎩", "shoe": "👟", "shirt": "👕", "ball": "⚽", "balloon": "🎈",
    "bell": "🔔", "chair": "🪑", "flower": "🌻", "cactus": "🌵", "crown": "👑", "basket": "🧺",
}  # fmt: skip
NOVEL = {
    "penguin": "🐧", "octopus": "🐙", "parrot": "🦜", "tiger": "🐅", "kiwi": "🥝", "avocado": "🥑", "violin": "🎻", "scooter": "🛴",
    "tractor": "🚜", "candle": "🕯", "robot": "🤖", "anchor": "⚓",
}  # fmt: skip

# Beginnings of words in the Unicode names of characters that must not be nameless things: those that a viewer could call by a known or a
# novel noun, text and abstract signs, people and faces.
AMBIGUOUS = """
apple tomato bread sandwich cake lemon tangerine cherr fruit melon mango peach berries corn maize rice mushroom burger hot teacup
cup mug glass dog poodle cat horse cow ox buffalo pig boar ram goat sheep rabbit elephant mammoth monkey gorilla orangutan duck
swan bird chick rooster turkey owl eagle dove dodo frog turtle snake fish blowfish crab lobster butterfly snail shell spider tiger
leopard lion penguin octopus squid parrot peacock car automobile vehicle taxi bus minibus truck lorry pickup ambulance engine
tractor bicycl motorcycle scooter train locomotive railway tram metro monorail rail rocket key lock hammer guitar banjo violin
drum trumpet horn saxophone camera phone book books notebook ledger umbrella hat cap shoe boot sandal slipper shirt clothes ball
basketball volleyball football softball billiards balloon bell chair seat flower blossom rose hibiscus tulip sunflower rosette
lotus bouquet tree cactus crown basket kiwifruit avocado candle robot lamp face symbol sign arrow clock hand finger fist person
people man woman men women boy girl child adult baby fairy mage elf genie zombie vampire hamburger trolleybus station cinema movie
sleeping restroom customs passport baggage emoji component square circle diamond triangle heart button input mark keycap speech
bubble thought notes note couple family kiss lips swimmer surfer runner golfer dancer superhero supervillain ninja prince princess
police worker guardsman bride santa christmas ogre goblin imp selfie cartwheel juggling fencer wrestlers polo handball skier
snowboarder pedestrian bicyclist moon globe waxing waning crescent mail envelope page calendar chart banknote folder newspaper
heads silhouette speaker mirror kneeling standing
""".split()  # noqa: SIM905
NAMELESS_RANGES = ((0x1F300, 0x1FAF0),)
NAMELESS_COUNT = 300


def draw(character: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """Return a character's glyph, trimmed and fitted into a square of CELL pixels, or None if the font has no picture of it or only a small
    one.
    """
    canvas = Image.new("RGBA", (180, 180))
    ImageDraw.Draw(canvas).text((16, 16), character, font=font, embedded_color=True)
    bounds = canvas.getbbox()
    if bounds is None or min(bounds[2] - bounds[0], bounds[3] - bounds[1]) < 40:
        return None
    glyph = canvas.crop(bounds)
    scale = (CELL - 2) / max(glyph.size)
    glyph = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(glyph, ((CELL - glyph.width) // 2, (CELL - glyph.height) // 2))
    return cell


def nameless_candidates() -> list[str]:
    """Return the characters in whose Unicode names no word begins with a known noun, a novel one or an ambiguous word."""
    stems = (*AMBIGUOUS, *KNOWN, *NOVEL)
    found = []
    for start, end in NAMELESS_RANGES:
        for code in range(start, end):
            name = unicodedata.name(chr(code), "").lower()
            if name and not any(word.startswith(stems) for word in name.replace("-", " ").split()):
                found.append(chr(code))
    return found


def main() -> None:
    font = ImageFont.truetype(sys.argv[1] if len(sys.argv) > 1 else FONT, FONT_SIZE)
    cells: list[Image.Image] = []
    entries: list[dict[str, str]] = []
    for kind, nouns in (("known", KNOWN), ("novel", NOVEL)):
        for noun, character in nouns.items():
            cell = draw(character, font)
            if cell is None:
                raise SystemExit(f"the font has no glyph for {noun}")
            cells.append(cell)
            entries.append({"kind": kind, "noun": noun, "character": character})
    drawn = [(character, cell) for character in nameless_candidates() if (cell := draw(character, font)) is not None]
    step = max(1.0, len(drawn) / NAMELESS_COUNT)
    for index in range(min(NAMELESS_COUNT, len(drawn))):
        character, cell = drawn[int(index * step)]
        cells.append(cell)
        entries.append({"kind": "nameless", "noun": "", "character": character})
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, cell in enumerate(cells):
        sheet.paste(cell, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    sheet.save(ASSETS / "glyphs.png", optimize=True)
    layout = {"cell": CELL, "columns": COLUMNS, "glyphs": entries}
    (ASSETS / "glyphs.json").write_text(json.dumps(layout, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(cells)} glyphs ({len(drawn)} nameless to choose from), {(ASSETS / 'glyphs.png').stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
