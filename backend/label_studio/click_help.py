"""How a mask is corrected by clicks in Label Studio's editor: the same text for `make demo`, the guide and the labelling config's header.

tests/e2e/test_instructions.py follows every step in the editor. The order of the steps matters in Label Studio 1.23.2: a plain click on a
mask selects the mask and sends nothing; a label's number key chooses the plain tool; each click unselects the label; and if Auto-Detect is
chosen before the label, choosing the label leaves Auto-Detect again.
"""

from __future__ import annotations

SWITCH = "Switch on Auto-Annotation, below the picture."
ADD = (
    "To add a part: click the green label, point at Auto-Detect (the toolbar's last icon), choose its points, hold Ctrl and click the part."
)
TAKE_AWAY = "To take a part away: click the green label, point at Auto-Detect, choose its points, hold Ctrl and Alt and click the part."
BOX = "To draw a box: click the blue label, point at Auto-Detect, choose its rectangle, hold Ctrl and drag around the object."
ACCEPT = "Wait for the new mask, press the tick below the picture, and press Submit."
ELSEWHERE = "A click or box away from every mask makes a mask of its own, which is not learned as the description."
CORRECTING = (SWITCH, ADD, TAKE_AWAY, BOX, ACCEPT, ELSEWHERE)
