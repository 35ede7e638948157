"""The words around numbers that say what the numbers are: a box, points, a corner, or nothing to do with either."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from sam4mllm.prompts.coordinates import bare


class About(enum.Enum):
    """What a list of numbers is, as far as words say."""

    NOTHING = "nothing"
    BOX = "box"
    POINTS = "points"
    ELSE = "else"


_BOX = frozenset(
    "box boxes bbox bboxes bbox2d box2d boundingbox boundingboxes bounding bndbox rect rectangle rectangles roi region xyxy xywh coords "
    "coordinates boxcoordinates det detection quad obb boxstart quadstart "
    "begrenzungsrahmen rahmen koordinaten boîte boite cadre coordonnées caja cuadro recuadro coordenadas".split()
)
_BOX_CJK = ("边界框", "检测框", "矩形框", "坐标", "位置", "邊界框", "座標")
_POINTS = frozenset(
    "point points point2d points2d pointcoord keypoint keypoints click clicks center centre centroid pointstart "
    "inside outside positive negative punkt punkte punto puntos".split()
)
_ELSE = frozenset(
    "size sizes imagesize imgsize resolution dimension dimensions shape ratio polygon poly polygons contour outline segmentation mask masks "
    "color colour rgb rgba hex palette time times timestamp timestamps date dates score scores confidence confidences id ids year years "
    "bbox3d box3d line polyline trajectory reference references page pages step steps count counts "
    "grösse auflösung farbe jahr jahre taille année années tamaño año años".split()
)
_ELSE_CJK = ("尺寸", "大小", "分辨率", "颜色", "年份")
BOX_TAGS = frozenset("box bbox boxstart det quad quadstart boundingbox bndbox obb rect".split())
POINT_TAGS = frozenset("point points pointstart click poly polystart polygon".split())
LABEL_TAGS = frozenset("ref objectrefstart phrase label".split())

_CORNERS = {
    "topleft": "topleft upperleft lefttop leftupper leftcorner tl lt linksoben obenlinks hautgauche supérieurgauche superiorizquierda p1 min",
    "bottomright": "bottomright lowerright rightbottom rightlower br rb rechtsunten untenrechts basdroite basdroit inférieurdroit inferiorderecha p2 max",
    "topright": "topright upperright tr rechtsoben obenrechts",
    "bottomleft": "bottomleft lowerleft bl linksunten untenlinks",
}
_CORNER_OF = {word: corner for corner, words in _CORNERS.items() for word in words.split()}
_CORNERS_CJK = {"左上": "topleft", "右下": "bottomright", "右上": "topright", "左下": "bottomleft"}
_FILLERS = frozenset(
    "corner point coordinates coordinate vertex is at of the box located ecke bei ist der des coin angle est à de la boîte "
    "esquina está en caja".split()
)
OPPOSITE = {"topleft": "bottomright", "bottomright": "topleft", "topright": "bottomleft", "bottomleft": "topright"}
LINKS = frozenset("to bis à au jusqu hasta a até 到 至 -- - – — → ~ ->".split())
"""Between two corners, as in: from (1, 2) to (3, 4)."""

A_NUMBER = "#"
"""Stands among words for a number or a text, which what was said before it is about: in ``"id": 3, "cup": [...]`` the list is no id."""
FAR, NEAR = 8, 3
"""Words before a list that can say that it is a box, and that it is not. The more is at stake, the nearer: a box that is not read is lost."""


def about(words: Sequence[str]) -> About:
    """What a list is after these words, of which the last is nearest."""
    spent = False
    for distance, word in enumerate(reversed(words)):
        plain = bare(word)
        spent = spent or word == A_NUMBER
        if plain in _BOX or any(sign in plain for sign in _BOX_CJK):
            return About.BOX
        if distance < NEAR and not spent and plain in _POINTS:
            return About.POINTS
        if distance < NEAR and not spent and (plain in _ELSE or any(sign in plain for sign in _ELSE_CJK)):
            return About.ELSE
    return About.NOTHING


def corner(words: Sequence[str]) -> str:
    """The corner that the last word names, or the last two together, or nothing. Words between it and its numbers are left out."""
    plain = [bare(word) for word in words]
    while plain and plain[-1] in _FILLERS:
        plain.pop()
    if not plain:
        return ""
    east = next((corner for sign, corner in _CORNERS_CJK.items() if sign in plain[-1]), "")
    return east or _CORNER_OF.get(plain[-1], "") or _CORNER_OF.get("".join(plain[-2:]), "")
