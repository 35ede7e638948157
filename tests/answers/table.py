"""Answers as models of many families write them, for an image of 1000 x 500 pixels that Qwen2.5-VL resizes to 1008 x 504.

The object lies at (100, 50, 300, 250), a second one at (500, 50, 700, 250) pixels. A row is a name, a dialect, the answer, the boxes
that are right and whether a note must say that they were rescaled or cut. The outputs are those of the models' documentation, papers and
bug reports, with these numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sam4mllm.prompts.dialects import DEFAULT, DEMO, INTERNVL, LLAVA, QWEN2_5_VL, QWEN2_VL, QWEN3_VL, QWEN_VL_CHAT, Dialect

A = (100, 50, 300, 250)
B = (500, 50, 700, 250)

GEMINI = replace(QWEN3_VL, name="gemini", box='{"box_2d": [{y1}, {x1}, {y2}, {x2}]}')
UNIT = replace(DEFAULT, name="unit", frame="unit", digits=3)
LOCATED = replace(DEFAULT, name="located", box="<loc{y1}><loc{x1}><loc{y2}><loc{x2}>", digits=4)


@dataclass(frozen=True)
class Row:
    """One answer; ``boxes`` in pixels, ``noted`` whether a note is needed, ``absent`` whether it says that nothing is there."""

    name: str
    dialect: Dialect
    text: str
    boxes: tuple[tuple[int, int, int, int], ...] = ()
    noted: bool = False
    absent: bool = False
    finished: bool = True


QWEN = (
    Row("labels, floats and a score", QWEN2_5_VL, '[{"bbox_2d": [101.0, 50.4, 302.4, 252.0], "label": "cup", "score": 0.93}]', (A,)),
    Row("box_2d", QWEN2_5_VL, '```json\n[{"box_2d": [101, 50, 302, 252], "label": "the left cup"}]\n```', (A,)),
    Row("single quotes", QWEN2_5_VL, "[{'bbox_2d': [101, 50, 302, 252], 'label': 'the left cup'}]", (A,)),
    Row("numbers as text", QWEN2_5_VL, '{"bbox_2d": ["101", "50", "302", "252"]}', (A,)),
    Row("the list as text", QWEN2_5_VL, '{"bbox_2d": "[101, 50, 302, 252]", "label": "cup"}', (A,)),
    Row("JSON in a string", QWEN2_5_VL, '"[{\\"bbox_2d\\": [101, 50, 302, 252], \\"label\\": \\"cup\\"}]"', (A,)),
    Row("one object a line", QWEN2_5_VL, '{"bbox_2d": [101, 50, 302, 252]}\n{"bbox_2d": [504, 50, 706, 252], "label": "cup"}', (A, B)),
    Row("map of lists", QWEN2_5_VL, '{"cups": [[101, 50, 302, 252], [504, 50, 706, 252]]}', (A, B)),
    Row("keys of other things", QWEN2_5_VL, '{"id": 3, "size": [1008, 504], "bbox_2d": [101, 50, 302, 252], "rgb": [1, 2, 3]}', (A,)),
    Row("second cut off in a number", QWEN2_5_VL, '[{"bbox_2d": [101, 50, 302, 252]}, {"bbox_2d": [504, 50, 7', (A,), finished=False),
    Row("cut off in the only box", QWEN2_5_VL, '```json\n[{"bbox_2d": [101, 50, 302, 25', finished=False),
    Row("named, cut off in the last", QWEN2_5_VL, '{"x1": 101, "y1": 50, "x2": 302, "y2": 2', finished=False),
    Row("named, cut off after the last", QWEN2_5_VL, '{"x1": 101, "y1": 50, "x2": 302, "y2": 252, "lab', (A,), finished=False),
    Row("thought that does not end", QWEN2_5_VL, "<think>The cup is at [101, 50, 302, 252] and", (), True, finished=False),
    Row("thought without a beginning", QWEN2_5_VL, 'At [5, 5, 9, 9]? No.\n</think>\n\n[{"bbox_2d": [101, 50, 302, 252]}]', (A,)),
    Row("thought and marked answer", QWEN2_5_VL, "<think>[5, 5, 9, 9]</think><answer>[101, 50, 302, 252]</answer>", (A,)),
    Row("answer marked, talk around", QWEN2_5_VL, "First I saw [5, 5, 90, 90]. <answer>[101, 50, 302, 252]</answer> [1, 1, 99, 99]", (A,)),
    Row("final answer in prose", QWEN2_5_VL, "Candidates: [5, 5, 90, 90].\n**Final Answer**: [101, 50, 302, 252]", (A,)),
    Row("thought in JSON", QWEN2_5_VL, '{"thought": "not the one at [5, 5, 90, 90]", "bbox_2d": [101, 50, 302, 252]}', (A,)),
    Row("label with a list", QWEN2_5_VL, '[{"bbox_2d": [101, 50, 302, 252], "label": "cup [5, 5, 90, 90]"}]', (A,)),
    Row("quad of corners", QWEN2_5_VL, '{"quad": [101, 50, 302, 50, 302, 252, 101, 252]}', (A,)),
    Row("nested corners", QWEN2_5_VL, '{"bbox": [[101, 50], [302, 252]]}', (A,)),
    Row("four nested corners", QWEN2_5_VL, "[[101, 50], [302, 50], [302, 252], [101, 252]]", (A,)),
    Row("width and height first", QWEN2_5_VL, '{"height": 202, "width": 201, "x": 101, "y": 50}', (A,)),
    Row("CSS words", QWEN2_5_VL, '{"left": 101, "top": 50, "width": 201, "height": 202}', (A,)),
    Row("edges in prose", QWEN2_5_VL, "- Left: 101\n- Top: 50\n- Right: 302\n- Bottom: 252", (A,)),
    Row("edges in bold", QWEN2_5_VL, "**x_min**: 101, **y_min**: 50, **x_max**: 302, **y_max**: 252", (A,)),
    Row("corners as mappings", QWEN2_5_VL, '{"top_left": {"x": 101, "y": 50}, "bottom_right": {"x": 302, "y": 252}}', (A,)),
    Row("corners in prose", QWEN2_5_VL, "The top-left corner is (101, 50) and the bottom-right corner is (302, 252).", (A,)),
    Row("from to", QWEN2_5_VL, "The cup spans from (101, 50) to (302, 252).", (A,)),
    Row("bounding box in prose", QWEN2_5_VL, "Bounding box: 101, 50, 302, 252", (A,)),
    Row("YAML", QWEN2_5_VL, "bbox:\n  - 101\n  - 50\n  - 302\n  - 252\n", (A,)),
    Row("a table", QWEN2_5_VL, "| label | x1 | y1 | x2 | y2 |\n|---|---|---|---|---|\n| cup | 101 | 50 | 302 | 252 |", (A,)),
    Row("XML", QWEN2_5_VL, "<bndbox><xmin>101</xmin><ymin>50</ymin><xmax>302</xmax><ymax>252</ymax></bndbox>", (A,)),
    Row("attributes", QWEN2_5_VL, '<box x1="101" y1="50" x2="302" y2="252" label="cup"/>', (A,)),
    Row("pixels with units", QWEN2_5_VL, "(101px, 50px, 302px, 252px)", (A,)),
    Row("LaTeX", QWEN2_5_VL, "\\boxed{[101, 50, 302, 252]}", (A,)),
    Row("order told: width and height", QWEN2_5_VL, "In [x, y, width, height]: [101, 50, 201, 202]", (A,)),
    Row("order told: y first", QWEN2_5_VL, "[ymin, xmin, ymax, xmax] = [50, 101, 252, 302]", (A,)),
    Row("order told by the key", QWEN2_5_VL, '{"bbox_xywh": [101, 50, 201, 202]}', (A,)),
    Row("thousandths for pixels", QWEN2_5_VL, "[100, 100, 300, 500], [500, 500, 700, 900]", (A, (500, 250, 700, 450)), True),
    Row("percent", QWEN2_5_VL, '{"bbox_2d": ["10%", "10%", "30%", "50%"]}', (A,), True),
    Row("order told afterwards", QWEN2_5_VL, '{"bbox": [101, 50, 201, 202], "format": "xywh"}', (A,)),
    Row("edges in a line before", QWEN2_5_VL, "I go from top left to bottom right:\n[101, 50, 302, 252]", (A,)),
    Row("corners by x and y", QWEN2_5_VL, "The top left corner is at x=101, y=50, the bottom right corner at x=302, y=252.", (A,)),
    Row("size of the image first", QWEN2_5_VL, "Image width: 1008, height: 504. x: 101, y: 50, width: 201, height: 202", (A,)),
    Row("names for each corner", QWEN2_5_VL, "(x1, y1) = (101, 50) and (x2, y2) = (302, 252)", (A,)),
    Row("left of the image", QWEN2_5_VL, '{"bbox_2d": [-20, -20, -5, -5]}'),
    Row("a telephone and an address", QWEN2_5_VL, "Call +49 30 1234 5678 or 10.0.0.1."),
    Row("old tokens", QWEN2_5_VL, "<|object_ref_start|>the left cup<|object_ref_end|><|box_start|>(101,50),(302,252)<|box_end|>", (A,)),
    Row("points in JSON", QWEN2_5_VL, '[{"point_2d": [150, 100]}, {"point_2d": [200, 150]}]'),
    Row("size and year", QWEN2_5_VL, "The photo of 2019 (1008x504) shows 3 cups, the oldest of 1987."),
    Row("an empty list of boxes", QWEN2_5_VL, '{"bbox_2d": []}', absent=True),
    Row("four zeros", QWEN2_5_VL, '[{"bbox_2d": [0, 0, 0, 0], "label": "cup"}]', absent=True),
    Row("null", QWEN2_5_VL, '{"bbox_2d": null}', absent=True),
    Row("not found, in JSON", QWEN2_5_VL, '{"found": false}', absent=True),
    Row("Qwen2-VL, closing token cut off", QWEN2_VL, "<|box_start|>(100,100),(300,500)", (A,), finished=False),
    Row("Qwen2-VL, half of a number", QWEN2_VL, "<|box_start|>(100,100),(300,50", finished=False),
    Row("Qwen2-VL, two without tokens", QWEN2_VL, "(100,100),(300,500) (500,100),(700,500)", (A, B)),
    Row("Qwen2-VL, quad", QWEN2_VL, "<|quad_start|>(100,100),(300,100),(300,500),(100,500)<|quad_end|>", (A,)),
    Row("Qwen2-VL, in prose", QWEN2_VL, "The cup's bounding box is <|box_start|>(100,100),(300,500)<|box_end|>.<|im_end|>", (A,)),
    Row("Qwen2-VL, phrase with numbers", QWEN2_VL, "<ref>no. (7,8),(90,99)</ref><|box_start|>(100,100),(300,500)<|box_end|>", (A,)),
    Row("Qwen-VL-Chat", QWEN_VL_CHAT, "<ref>the left cup</ref><box>(100,100),(300,500)</box>", (A,)),
    Row("Qwen-VL-Chat, quad", QWEN_VL_CHAT, "<ref>cup</ref><quad>(100,100),(300,110),(300,500),(100,490)</quad>", (A,)),
    Row("Qwen3-VL, up to 1000", QWEN3_VL, '[{"bbox_2d": [0, 0, 1000, 1000]}]', ((0, 0, 1000, 500),)),
    Row("Qwen3-VL, beyond every frame", QWEN3_VL, "[101, 50, 1043, 252]", ((101, 25, 1000, 126),), True),
    Row("Qwen3-VL, shares", QWEN3_VL, '{"bbox_2d": [0.1, 0.1, 0.3, 0.5]}', (A,), True),
    Row("Qwen3-VL, whole image as shares", QWEN3_VL, '{"bbox_2d": [0, 0, 1, 1]}', ((0, 0, 1000, 500),), True),
)  # fmt: skip

OTHERS = (
    Row("InternVL, tags and spaces", INTERNVL, "<ref>the left cup</ref><box> [ [ 100, 100, 300, 500 ] ] </box>", (A,)),
    Row("InternVL, cut off in the second", INTERNVL, "<ref>cups</ref><box>[[100, 100, 300, 500], [500, 100, 7", (A,), finished=False),
    Row("InternVL, JSON", INTERNVL, '```json\n[{"label": "cup", "bbox": [100, 100, 300, 500]}]\n```', (A,)),
    Row("InternVL, a phrase like a key", INTERNVL, "the point of the red mask[[100, 100, 300, 500]]", (A,)),
    Row("CogVLM and GLM-4V", DEFAULT, "The left cup [[100,100,300,500]]", (A,)),
    Row("GLM-4.5V", DEFAULT, "<think>maybe [[5,5,9,9]]</think><|begin_of_box|>[[100,100,300,500]]<|end_of_box|>", (A,)),
    Row("DeepSeek-VL2", DEFAULT, "<|ref|>the left cup<|/ref|><|det|>[[100, 100, 300, 500]]<|/det|><｜end▁of▁sentence｜>", (A,)),
    Row("DeepSeek-VL2, begun twice", DEFAULT, "<|ref|>cup<|/ref|><|det|>[[220, <|ref|>cup<|/ref|><|det|>[[100,100,300,500]]<|/det|>", (A,)),
    Row("MiniCPM-V", DEFAULT, "<ref>cup</ref><box>100 100 300 500</box>", (A,)),
    Row("Seed1.5-VL", DEFAULT, "<bbox>100 100 300 500</bbox>", (A,)),
    Row("Rex-Omni", DEFAULT, "<|object_ref_start|>cup<|object_ref_end|><|box_start|><100><100><300><500><|box_end|>", (A,)),
    Row("MiniGPT-v2", DEFAULT, "<p>the left cup</p> {<10><10><30><50>}", (A,), True),
    Row("Florence-2", DEFAULT, "the left cup<loc_100><loc_100><loc_300><loc_500>", (A,)),
    Row("Florence-2, two of one name", DEFAULT, "cup<loc_100><loc_100><loc_300><loc_500><loc_500><loc_100><loc_700><loc_500>", (A, B)),
    Row("Florence-2, quad", DEFAULT, "cup<loc_100><loc_100><loc_300><loc_100><loc_300><loc_500><loc_100><loc_500>", (A,)),
    Row("PaliGemma", DEFAULT, "<loc0102><loc0102><loc0512><loc0307> the left cup", (A,), True),
    Row("PaliGemma, two", DEFAULT, "<loc0102><loc0102><loc0512><loc0307> cup ; <loc0102><loc0512><loc0512><loc0717> cup", (A, B), True),
    Row("PaliGemma, cut off", DEFAULT, "<loc0102><loc0102><loc0512><loc0307> cup ; <loc0102><loc0512><lo", (A,), True, finished=False),
    Row("y first as the dialect's own", LOCATED, "<loc0100><loc0100><loc0500><loc0300> cup", (A,)),
    Row("Kosmos-2", DEFAULT, "<phrase>the left cup</phrase><object><patch_index_0099><patch_index_0521></object>", ((109, 55, 297, 258),)),
    Row("Shikra", UNIT, "the left cup[0.100,0.100,0.300,0.500]", (A,)),
    Row("Ovis", UNIT, "<ref>the left cup</ref><box>(0.100,0.100),(0.300,0.500)</box>", (A,)),
    Row("Kimi-VL", UNIT, '◁think▷maybe [0.5,0.5,0.9,0.9]◁/think▷{"bbox_2d": [0.100, 0.100, 0.300, 0.500]}', (A,)),
    Row("Moondream", UNIT, '{"objects": [{"x_min": 0.1, "y_min": 0.1, "x_max": 0.3, "y_max": 0.5}]}', (A,)),
    Row("centre and size", UNIT, '{"cx": 0.2, "cy": 0.3, "w": 0.2, "h": 0.4}', (A,)),
    Row("shares asked, thousandths given", UNIT, "[100, 100, 300, 900]", ((100, 50, 300, 450),), True),
    Row("shares asked, percent given", UNIT, "[10, 10, 30, 50]", (A,), True),
    Row("one share without its point", UNIT, "[0.1, 0.1, 0.3, 5]", ((100, 50, 300, 500),), True),
    Row("Gemini", GEMINI, '```json\n[\n  {"box_2d": [100, 100, 500, 300], "label": "the left cup"}\n]\n```', (A,)),
    Row("Gemini, a bare list", GEMINI, "The cup is at [100, 100, 500, 300].", (A,)),
    Row("Gemini, names in order of x", GEMINI, '{"xmin": 100, "ymin": 100, "xmax": 300, "ymax": 500}', (A,)),
    Row("Gemini, mask beside it", GEMINI, '[{"box_2d": [100, 100, 500, 300], "mask": "<start_of_mask_token>", "label": "cup"}]', (A,)),
    Row("Molmo, a point", DEFAULT, '<point x="20.3" y="30.1" alt="the left cup">the left cup</point>'),
    Row("Molmo, two points", DEFAULT, '<points x1="10.0" y1="10.0" x2="30.0" y2="50.0" alt="cups">cups</points>'),
    Row("points in a list", DEFAULT, "[(100, 100), (300, 500)]"),
    Row("points in prose", DEFAULT, "The cups are at (150, 200) and (600, 200)."),
    Row("points after a word", DEFAULT, "Click points: [100, 100, 300, 500]"),
    Row("points of things at corners", DEFAULT, "The top left cup is seen at (150, 200), the bottom right one at (600, 400)."),
    Row("a list of points in lines", QWEN2_VL, "- (150,200)\n- (600,400)"),
    Row("a polygon", DEFAULT, '{"polygon": [[100, 100], [300, 100], [300, 500], [100, 500]]}'),
    Row("LLaVA, prose", LLAVA, "The bounding box of the left cup is approximately [0.1, 0.3, 0.3, 0.5] in the image.", (A,)),
    Row("LLaVA, round brackets", LLAVA, "It is located at coordinates (0.10, 0.30, 0.30, 0.50).", (A,)),
    Row("LLaVA, shares of the image", LLAVA, "[0.10, 0.02, 0.30, 0.36]", ((100, 10, 300, 180),), True),
    Row("LLaVA, thousandths", LLAVA, "[100, 100, 300, 900]", ((100, 50, 300, 450),), True),
    Row("LLaVA, percent in prose", LLAVA, "x1: 10%, y1: 30%, x2: 30%, y2: 50%", (A,), True),
    Row("LLaVA, width and height", LLAVA, '{"x": 0.1, "y": 0.3, "width": 0.2, "height": 0.2}', (A,)),
    Row("demo", DEMO, "[ 100 100 300 500 ] <|end|>", (A,)),
    Row("demo, two", DEMO, "[ 100 100 300 500 ] [ 500 100 700 500 ] <|end|>", (A, B)),
    Row("numbers alone", DEFAULT, "100, 100, 300, 500", (A,)),
    Row("numbers alone, cut off", DEFAULT, "100, 100, 300, 50", finished=False),
    Row("a count", DEFAULT, "1, 2, 3, 4"),
    Row("years", DEFAULT, "It was made in (1990, 1995, 2001, 2005)."),
    Row("a list of pages", DEFAULT, "See pages [12, 14, 19, 30]."),
    Row("a colour", DEFAULT, '{"color": [120, 130, 200, 255]}'),
    Row("a time", DEFAULT, "Taken on 2024-05-01 at 10:30:00 with ISO 100, 50 mm, 1/250 s, f/1.8"),
    Row("a list of steps", DEFAULT, "Step 1: look. Step 2: find it: [100, 100, 300, 500]", (A,)),
    Row("five numbers", DEFAULT, "[100, 100, 300, 500, 7]"),
    Row("German", DEFAULT, "Die Koordinaten der linken Tasse sind (100, 100, 300, 500).", (A,)),
    Row("German, corners", DEFAULT, "Oben links: (100, 100), unten rechts: (300, 500)", (A,)),
    Row("Chinese, corners", DEFAULT, "左上角坐标为(100，100)，右下角坐标为(300，500)。", (A,)),
    Row("Chinese, numbers", DEFAULT, "左边杯子的边界框是［100，100，300，500］。", (A,)),
)  # fmt: skip

ABSENT = tuple(
    Row(f"absent, {name}", QWEN2_5_VL, text, absent=True)
    for name, text in {
        "German": "Es gibt keine Tassen in diesem Bild.",
        "German, not visible": "Der Hund ist auf dem Bild nicht zu sehen.",
        "German, not present": "Nicht vorhanden.",
        "French": "Il n'y a pas de tasse dans l'image.",
        "French, none": "Aucune tasse n'est visible.",
        "French, not found": "Je ne trouve pas cet objet.",
        "Spanish": "No hay ninguna taza en la imagen.",
        "Spanish, not found": "No se encuentra el objeto.",
        "Spanish, not visible": "El perro no está en la imagen.",
        "Chinese": "图片中没有杯子。",
        "Chinese, not found": "未找到该物体",
        "Chinese, traditional": "圖中沒有這個物體",
        "Japanese": "画像に犬はいません。",
        "Korean": "이미지에 컵이 없습니다.",
        "Portuguese": "Não há xícaras na imagem.",
        "Italian": "Non c'è nessuna tazza.",
        "Russian": "На изображении нет чашки.",
        "zero": "I can see zero objects of that kind.",
    }.items()
) + tuple(
    Row(f"present, {name}", QWEN2_5_VL, text)
    for name, text in {
        "German": "Die Tasse steht links auf dem Tisch.",
        "French": "La tasse est à gauche.",
        "Spanish": "La taza está a la izquierda.",
        "Chinese": "杯子在左边。",
        "refusal": "I'm sorry, but I can't provide coordinates.",
    }.items()
)

ROWS = QWEN + OTHERS + ABSENT
