"""Text of any script: it is drawn with fonts that have it, in the right order, and breaks where it may."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from util import lettering
from util.drawing import ObjectPainter, sentence_labels
from util.lettering import UNKNOWN, draw_text, drawable, lettering_notes, text_width, wrap_text

SENTENCES = {
    "Latin": "the señora’s AVATAR – łódź",
    "Greek": "ο σκύλος",
    "Cyrillic": "собака бежит",
    "Chinese": "追着球跑的白色小狗，它在草地上",
    "Traditional Chinese": "追著球跑的白色小狗",
    "Japanese": "走っている「白い犬」とボール",
    "Korean": "공을 쫓는 하얀 강아지",
    "Arabic": "الكلب الأبيض، الذي يطارد الكرة",
    "Persian": "سگ سفید می‌دود",
    "Urdu": "یہ کتا بھاگ رہا ہے",
    "Hebrew": "הכלב הלבן",
    "Hindi": "गेंद का पीछा करता हुआ कुत्ता।",
    "Bengali": "সাদা কুকুর",
    "Tamil": "வெள்ளை நாய்",
    "Thai": "สุนัขสีขาวที่วิ่งไล่ลูกบอล",
    "emoji": "🐕‍🦺 👍🏽 🇩🇪 ❤️ 1️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🟥",
    "mixed": "1  dog 狗 🐕 कुत्ता · كلب",
}
SIZE = 24


def picture(text: str, size: int = SIZE) -> np.ndarray:
    """The text in white on black, without the black columns at both sides."""
    image = Image.new("RGB", (40 * size, 2 * size))
    draw_text(image, 2 * size, size // 2, text, size, (255, 255, 255))
    pixels = np.asarray(image)[..., 0]
    inked = np.flatnonzero(pixels.max(axis=0))
    return pixels[:, inked[0] : inked[-1] + 1] if len(inked) else pixels[:, :0]


@pytest.fixture
def without_noto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An environment without the package of Noto fonts."""
    caches = (lettering._replacement, wrap_text, text_width)
    monkeypatch.setattr(lettering, "_noto", tuple)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("script", SENTENCES)
def test_every_script_is_drawn(script: str) -> None:
    sentence = SENTENCES[script]
    assert drawable(sentence) == sentence and lettering_notes([sentence]) == []
    letters = [c for c in set(sentence) if c.isalpha() or c in "🐕👍🟥"] + [UNKNOWN, "?"]
    assert len({picture(letter).tobytes() for letter in letters}) == len(letters), "boxes would look alike"
    assert picture(sentence).shape[1] == pytest.approx(text_width(sentence, SIZE), abs=SIZE / 3)


def test_a_line_has_one_baseline() -> None:
    def lowest(text: str, width: int) -> int:
        return int(np.flatnonzero(picture(text)[:, :width].any(axis=1))[-1])

    width = picture("a").shape[1] - 1
    assert {lowest(text, width) for text in ("a", "ag", "aÅ", "a狗", "aที่", "a 🐕")} == {lowest("a", width)}


@pytest.mark.parametrize("word", ["سلام", "کتا", "ہے", "بھاگ"])
def test_arabic_letters_join(word: str) -> None:
    """Joined letters are narrower than separate ones; letters of Urdu must not come from a second font."""
    assert text_width(word, SIZE) < sum(text_width(letter, SIZE) for letter in word) - 2


def test_marks_join_their_letters() -> None:
    assert text_width("कि", SIZE) < text_width("क", SIZE) + text_width("ि", SIZE)
    assert picture("कि").shape != picture("िक").shape, "the vowel sign stands before its consonant"
    assert text_width("🐕‍🦺", SIZE) == pytest.approx(text_width("🐕", SIZE), abs=4)


def likeness(line: str, word: str) -> float:
    """How well the left end of a drawn line fits a word, up to 1, wherever the word's pixels start."""
    pattern = picture(word)[:, 2:-2].astype(np.float32)
    start = picture(line)[:, : pattern.shape[1] + 6].astype(np.float32)
    return float(cv2.matchTemplate(start, pattern, cv2.TM_CCOEFF_NORMED).max())


@pytest.mark.parametrize(
    ("line", "leftmost", "rightmost"),
    [
        ("אב", "ב", "א"),
        ("אב 12", "12", "אב"),
        ("dog אב", "dog", "בא"),
        ("אב 狗", "狗", "אב"),
        ("狗 אב", "狗", "אב"),
        ("狗 אב dog", "狗", "dog"),
        ("אב 🐕", "🐕", "אב"),
        ("אב 狗 ग", "ग", "אב"),
    ],
)
def test_right_to_left_order(line: str, leftmost: str, rightmost: str) -> None:
    assert likeness(line, leftmost) > 0.8 > likeness(line, rightmost)


@pytest.mark.parametrize(
    ("label", "right"), [("הכלב הלבן שרודף אחרי הכדור בפארק", True), ("the white dog is running", False)]
)
def test_the_last_line_of_a_label_starts_at_the_side_of_its_script(label: str, right: bool) -> None:
    mask = np.zeros((1, 240, 320), bool)
    mask[0, 120:160, 120:220] = True
    frame = np.zeros((240, 320, 3), np.uint8)
    drawn, bare = (ObjectPainter([text], (240, 320), 1.5).draw(frame, mask) for text in (label, ""))
    rows, columns = np.nonzero((drawn != bare).any(axis=-1))
    chip = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    ink = np.nonzero((chip[len(chip) // 2 :] > 200).all(axis=-1))[1]
    assert len(ink) > 20 and (ink.mean() > chip.shape[1] / 2) == right


@pytest.mark.parametrize("script", SENTENCES)
def test_lines_fit_and_keep_every_character(script: str) -> None:
    sentence = SENTENCES[script]
    for width in (60, 90, 200):
        lines = wrap_text(sentence, SIZE, width)
        assert len(lines) > 1 or text_width(sentence, SIZE) <= width
        assert "".join("".join(lines).split()) == "".join(sentence.split())
        assert all(text_width(line, SIZE) <= width for line in lines)


def test_lines_break_where_they_may() -> None:
    chinese = wrap_text("它在跑。" * 10, SIZE, 5 * SIZE)
    assert len(chinese) > 5 and not any(line.startswith("。") for line in chinese)
    assert wrap_text("the dog 追着球", SIZE, int(text_width("the dog 追", SIZE)) + 2)[0] == "the dog 追"
    narrow = [*wrap_text("🐕‍🦺👍🏽🇩🇪", 20, 21), *wrap_text("किकिकि", 20, 24), *wrap_text("ที่ที่", 20, 14)]
    assert narrow == ["🐕‍🦺", "👍🏽", "🇩🇪", "कि", "कि", "कि", "ที่", "ที่"]
    assert wrap_text("wide", SIZE, 1) == tuple("wide")


def test_an_ellipsis_replaces_whole_words() -> None:
    text = SENTENCES["Arabic"]
    lines = wrap_text(text, SIZE, 150, limit=1)
    words = lines[0].removesuffix("…").split()
    assert len(lines) == 1 and lines[0].endswith("…") and words == text.split()[: len(words)] != []
    assert wrap_text("Donaudampfschiff fährt", SIZE, 120, limit=1)[0].startswith("Donau")


def test_what_no_font_has_is_never_a_box() -> None:
    assert drawable("the བོད་ཡིག \ue000 dog\x07") == f"the {UNKNOWN} dog"
    assert sentence_labels(["བོད་ཡིག", "a dog"]) == ["1  བོད་ཡིག", "2  a dog"]
    (note,) = lettering_notes(["the \ue000 dog", "a dog"])
    assert "no font has \ue000" in note and "pip" not in note
    mask = np.zeros((1, 240, 320), bool)
    mask[0, 120:160, 120:220] = True
    frame = np.zeros((240, 320, 3), np.uint8)
    labels = [ObjectPainter([text], (240, 320)).draw(frame, mask) for text in ("1  བོད་ཡིག", "")]
    assert (labels[0] != labels[1]).any(), "the number remains"


@pytest.mark.usefixtures("without_noto")
def test_without_the_noto_fonts() -> None:
    assert drawable("the 🐕‍🦺 कुत्ता 狗 الكلب") == f"the [dog]\u200d[safety vest] {UNKNOWN} 狗 الكلب"
    (note,) = lettering_notes(["the 🐕", "कुत्ता"])
    assert "pip install manimgx-fonts" in note and "🐕" in note and "क" in note
    assert picture(drawable("the 🐕 कुत्ता")).any()


def test_composed_and_decomposed_letters_look_the_same() -> None:
    assert drawable("re\u0301sume\u0301 \u1112\u1161\u11ab") == "résumé 한"


def test_most_alphabets_do_not_wait_for_the_systems_fonts(root: Path) -> None:
    code = (
        "import sys; from util.drawing import text_bar; text_bar('naïve ξένος мир سلام שלום 狗', 300);"
        "print('matplotlib.font_manager' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr
