"""The words before numbers that say what the numbers are: a box, points, a corner, or something else."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from sam4mllm.prompts.coordinates import bare


class About(enum.Enum):
    """What a list of numbers is, according to the words before it. NOTHING: the words do not say; ELSE: neither a box nor points."""

    NOTHING = "nothing"
    BOX = "box"
    POINTS = "points"
    ELSE = "else"


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_BOX = words(
    "box boxes bbox bboxes bbox2d box2d boundingbox boundingboxes bounding bndbox rect rectangle rectangles roi region xyxy xywh coords "
    "coordinates boxcoordinates det detection quad obb boxstart quadstart "
    "begrenzungsrahmen rahmen koordinaten boîte boite cadre coordonnées caja cuadro recuadro coordenadas"
)
_BOX_CJK = ("边界框", "检测框", "矩形框", "坐标", "位置", "邊界框", "座標")
_POINTS = words(
    "point points point2d points2d pointcoord keypoint keypoints click clicks center centre centroid pointstart "
    "inside outside positive negative punkt punkte punto puntos"
)
_ELSE = words(
    "size sizes imagesize imgsize resolution dimension dimensions ratio rgb rgba hex timestamp timestamps date dates confidence "
    "confidences id ids year years bbox3d box3d polygon polygons references pages "
    "grösse auflösung jahr jahre taille année années tamaño año años"
)
_ELSE_KEYS = words(
    "shape poly contour outline segmentation mask masks color colour palette time times score scores line polyline trajectory reference "
    "page step steps count counts"
)
"""Words that say ELSE only as keys of JSON: elsewhere they may belong to the phrase."""
_ELSE_CJK = ("尺寸", "大小", "分辨率", "颜色", "年份")
BOX_TAGS = words("box bbox boxstart beginofbox det quad quadstart boundingbox bndbox obb rect")
BOX_ENDS = words("endofbox boxend quadend")
POINT_TAGS = words("point points pointstart click poly polystart polygon")
POINT_ENDS = words("pointend polyend")
LABEL_TAGS = words("ref objectrefstart phrase label")

_CORNERS = {
    "topleft": "topleft upperleft lefttop leftupper tl lt linksoben obenlinks hautgauche supérieurgauche superiorizquierda p1 min",
    "bottomright": "bottomright lowerright rightbottom rightlower br rb rechtsunten untenrechts basdroite basdroit inférieurdroit "
    "inferiorderecha p2 max",
    "topright": "topright upperright tr rechtsoben obenrechts",
    "bottomleft": "bottomleft lowerleft bl linksunten untenlinks",
}
_CORNER_OF = {word: corner for corner, names in _CORNERS.items() for word in names.split()}
_CORNERS_CJK = {"左上": "topleft", "右下": "bottomright", "右上": "topright", "左下": "bottomleft"}
_FILLERS = words(
    "corner point coordinates coordinate vertex is are at of the box located x y ecke bei ist der des coin angle est à de la boîte "
    "esquina está en caja"
)
OPPOSITE = {"topleft": "bottomright", "bottomright": "topleft", "topright": "bottomleft", "bottomleft": "topright"}
LINKS = words("to bis à au jusqu hasta a até 到 至 -- - – — → ~ ->")
"""Words and signs that link two corners to a box, as in: from (1, 2) to (3, 4)."""

A_NUMBER = "#"
"""Stands in a list of words for a number or a text. The words before it refer to that number, not to what follows: in
``"id": 3, "cup": [...]`` the list is not an id."""
FAR, NEAR = 8, 3
"""How many words before a list are searched for one that says that it is a box (FAR) or that it is something else (NEAR). NEAR is smaller
because a box that is wrongly taken for something else is lost."""


def about(recent: Sequence[str]) -> About:
    """Return what a list of numbers is by the words before it, of which the last is nearest. Keys of JSON begin with a quotation mark."""
    spent = False
    for distance, word in enumerate(reversed(recent)):
        plain = bare(word.lstrip('"'))
        spent = spent or word == A_NUMBER or distance >= NEAR
        if plain in _BOX or any(sign in plain for sign in _BOX_CJK):
            return About.BOX
        if distance == 0 and plain in _POINTS:
            return About.POINTS
        if not spent and (plain in _ELSE or (word[0] == '"' and plain in _ELSE_KEYS) or any(sign in plain for sign in _ELSE_CJK)):
            return About.ELSE
    return About.NOTHING


def corner(recent: Sequence[str]) -> str:
    """Return the corner that the last word, or the last two together, name; an empty text if they name none. Filler words at the end, as in
    "top left corner is at", are skipped.
    """
    plain = [bare(word.lstrip('"')) for word in recent]
    while plain and plain[-1] in _FILLERS:
        plain.pop()
    if not plain:
        return ""
    east = next((corner for sign, corner in _CORNERS_CJK.items() if sign in plain[-1]), "")
    return east or _CORNER_OF.get(plain[-1], "") or _CORNER_OF.get("".join(plain[-2:]), "")
