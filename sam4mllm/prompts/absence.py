"""Whether an answer says, in words of its own, that what was asked for is not in the image."""

from __future__ import annotations

import re

_ENGLISH = (
    r"^no\b",
    r"^(?:null|n a)$",
    r"\b(?:none|nothing|nowhere|absent)\b",
    r"\b(?:there is|there are|there s|contains|shows|see|find|found|detected) no\b",
    r"\bno such\b",
    r"\bnot (?:found|present|visible|there|here|shown|detected|exist|contain|appear|see|find|in the (?:image|picture|photo))\b",
    r"\b(?:isn|aren) t (?:there|here|present|visible|shown|any|in the (?:image|picture|photo))\b",
    r"\b(?:doesn|don|didn|can|couldn) t (?:exist|contain|appear|see|find|detect|locate)\b",
    r"\b(?:cannot|unable to) (?:see|find|detect|locate)\b",
    r"\bzero (?:objects|instances|boxes|matches)\b",
)
_JSON = (  # figures are left out, so that bbox_2d is "bbox d"
    r"\b(?:bbox|box|boxes|bboxes|objects|detections|result|object|target|coordinates) (?:d )?(?:null|none)\b",
    r"\b(?:found|present|exists|visible|detected|exist) false\b",
)
_GERMAN = (
    r"^nein\b",
    r"\b(?:kein|keine|keinen|keiner|keines|keinem|nichts|nirgends|nirgendwo)\b",
    r"\bnicht (?:\w+ )?(?:vorhanden|gefunden|sichtbar|zu sehen|zu finden|da|erkennbar|abgebildet|finden|sehen)\b",
    r"\bnicht (?:im|auf dem|in dem) (?:bild|foto)\b",
)
_FRENCH = (
    r"^non\b",
    r"\b(?:aucun|aucune|néant|introuvable|introuvables|nulle part)\b",
    r"\bpas (?:de|d|présent|présente|présents|présentes|visible|visibles|trouvé|trouvée|dans|sur)\b",
    r"\bne (?:vois|trouve|figure|contient|comporte|peux|montre|voit) (?:pas|rien)\b",
    r"\brien\b",
    r"\babsente?s?\b",
)
_SPANISH = (
    r"^no\b",
    r"\bno (?:hay|existe|existen|está|están|aparece|aparecen|veo|encuentro|encontré|contiene|encontrado|visible|presente)\b",
    r"\bno se (?:ve|ven|encuentra|encuentran|aprecia|observa|encontró|detecta|puede)\b",
    r"\b(?:ningún|ninguno|ninguna|nada|ausente)\b",
)
_PORTUGUESE_AND_ITALIAN = (
    r"^não\b",
    r"\bnão (?:há|existe|existem|está|estão|aparece|vejo|encontro|encontrei|encontrado|se vê)\b",
    r"\b(?:nenhum|nenhuma|nessun|nessuno|nessuna|niente)\b",
    r"\bnon (?:c è|ci sono|è presente|è visibile|vedo|trovo|trovato|trovata)\b",
)
_RUSSIAN = (r"\b(?:нет|отсутствует|отсутствуют|ничего)\b", r"\bне (?:найден\w*|видно|вижу|обнаружен\w*|нахожу)\b")
_EAST_ASIAN = (
    r"没有|沒有|不存在|未(?:找到|发现|發現|检测到|檢測到|出现|出現|包含|见|見)|(?:找|看|检测)不到|不在(?:图|画|圖|畫|照片)|并无|並無|^(?:无|無)$",
    r"(?:あり|い|見つかり|存在し|見当たり|写ってい|映ってい|見え)ません|^なし$|存在しない|見つからない",
    r"없습니다|없어요|없음|없다|찾을 수 없|보이지 않",
)
_ABSENT = re.compile(
    "|".join((*_ENGLISH, *_JSON, *_GERMAN, *_FRENCH, *_SPANISH, *_PORTUGUESE_AND_ITALIAN, *_RUSSIAN, *_EAST_ASIAN)),
)
"""Matches an answer that denies. It is searched in the answer's words in lower case, with one space between them, without digits and signs.
"""


def says_none(words: str) -> bool:
    """Whether an answer's ``words`` (in lower case, one space between them, without figures and signs) deny what was asked for.

    A denial is recognised in English, German, French, Spanish, Portuguese, Italian, Russian, Chinese, Japanese and Korean, and as a JSON
    value, for example ``"bbox_2d": null`` or ``"found": false``.
    """
    return bool(_ABSENT.search(words))
