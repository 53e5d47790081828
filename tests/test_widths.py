"""Widths of text on a terminal: rows of labels in 40 scripts are as wide as terminals draw them."""

import ctypes
import ctypes.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from attnviz.escape import escape, label_token
from attnviz.record import Capture
from attnviz.render.terminal.cells import ColourDepth
from attnviz.render.terminal.draw import draw_picture_lines
from attnviz.render.terminal.text_width import (
    count_character_columns,
    count_columns,
    fit_columns,
    fix_width,
    stack_labels,
    wrap_columns,
)
from attnviz.views import make_heatmaps
from tests.captures import make_map, make_tokens
from tests.conftest import Run
from tests.pictures import make_screen

SENTENCES = {
    "Latin": "Tôi thích mèo ngủ",
    "Greek": "Ψάρια, γάτα κοιμάται στο χαλί",
    "Cyrillic": "Кошка спит на ковре",
    "Armenian": "Կատուն քնում է գորգի վրա",
    "Hebrew": "הֶחָתוּל יָשֵׁן עַל הַשָּׁטִיחַ",
    "Arabic": "القِطَّةُ نائمةٌ على السجّادة",
    "Syriac": "ܫܠܵܡܵܐ ܥܲܡܘܼܟ̣",
    "Thaana": "އައްސަލާމު ޢަލައިކުމް",
    "NKo": "ߒ ߓߍ߫ ߒߞߏ ߞߊ߬ߙߊ߲߬ ߠߊ߫",
    "Devanagari": "बिल्ली चटाई पर सो रही है क्योंकि वह थकी थी",
    "Bengali": "বিড়ালটি মাদুরের উপর ঘুমিয়ে আছে",
    "Gurmukhi": "ਬਿੱਲੀ ਚਟਾਈ ਉੱਤੇ ਸੌਂ ਰਹੀ ਹੈ",
    "Gujarati": "બિલાડી સાદડી પર સૂઈ રહી છે",
    "Odia": "ବିଲେଇଟି ମସିଣା ଉପରେ ଶୋଇଛି",
    "Tamil": "பூனை பாயில் தூங்குகிறது ஏனெனில் கொஞ்சம் சோர்வு",
    "Telugu": "పిల్లి చాప మీద నిద్రపోతోంది",
    "Kannada": "ಬೆಕ್ಕು ಚಾಪೆಯ ಮೇಲೆ ಮಲಗಿದೆ",
    "Malayalam": "പൂച്ച പായയിൽ ഉറങ്ങുന്നു",
    "Sinhala": "පූසා පැදුර මත නිදාගෙන සිටී",
    "Thai": "แมวนอนอยู่บนเสื่อเพราะมันเหนื่อยที่นี่น้ำ",
    "Lao": "ແມວນອນຢູ່ເທິງເສື່ອ ນ້ຳ",
    "Tibetan": "ཞི་མི་གདན་སྟེང་དུ་ཉལ་འདུག",
    "Burmese": "ကြောင်သည် ဖျာပေါ်တွင် အိပ်နေသည်",
    "Georgian": "კატა ხალიჩაზე სძინავს",
    "Hangul": "고양이가 매트 위에서 잔다",
    "Jamo": unicodedata.normalize("NFD", "고양이가 매트 위에서 잔다"),
    "Ethiopic": "ድመቷ ምንጣፍ ላይ ተኝታለች",
    "Cherokee": "ᏪᏌ ᎦᎵᎭ ᎠᏰᏍᏓᏗ",
    "Inuktitut": "ᐳᓯ ᓯᓂᒃᑐᖅ ᑭᒡᓕᓂ",
    "Ogham": "᚛ᚉᚐᚈ ᚔᚅ ᚌᚐᚂᚔᚂ᚜",
    "Runic": "ᚲᚨᛏᛏᚨ ᛊᛚᛖᛈᛁᚦ",
    "Khmer": "ឆ្មាកំពុងដេកលើកន្ទេលព្រោះវាហត់",
    "Mongolian": "ᠮᠤᠤᠷ ᠬᠢᠪᠰᠡᠨ ᠳᠡᠭᠡᠷ᠎ᠡ",
    "Balinese": "ᬫᬾᬂ ᬧᬸᬮᭂᬲ᭄ ᬭᬶᬂ ᬢᬶᬓᭂᬄ",
    "Javanese": "ꦏꦸꦕꦶꦁ ꦠꦸꦫꦸ ꦲꦶꦁ ꦏ꧀ꦭꦱ ꦭꦺꦴꦫꦺꦴ",
    "Sundanese": "ᮅᮎᮤᮀ ᮞᮛᮦ ᮓᮤ ᮞᮙᮊ᮪",
    "Han": "猫因为累了所以睡在垫子上",
    "Kana": "ﾈｺは疲れていたのでマットで寝た。が",
    "Yi": "ꃀꆂ ꈌꐥ ꀋꇊ",
    "Cham": "ꨠꨴꨪ ꨆꨯꨱ ꨔꨩ ꨤꨪꨱꩀ",
    "Meetei": "ꯍꯧꯗꯣꯡ ꯇꯨꯝꯃꯤ",
    "Chakma": "𑄝𑄨𑄣𑄬 𑄊𑄪𑄟𑄴 𑄎𑄢𑄴",
    "Tagalog": "ᜉᜓᜐ ᜈᜆᜓᜆᜓᜎᜓᜄ᜔",
    "Emoji": "👨‍👩‍👧 👍🏽 🇩🇪 ❤️ ☎ 1️⃣ ䷀ ☰ 🐈",
}
# Prints each row of a file, and asks the terminal in which column its cursor is then.
ASK_TERMINAL = """
import json, re, sys, termios, tty
rows = json.load(open(sys.argv[1], encoding="utf-8"))
settings = termios.tcgetattr(0)
tty.setcbreak(0)
columns = []
for row in rows:
    print("\\r\\x1b[2K" + row + "\\x1b[6n", end="", flush=True)
    reply = ""
    while not reply.endswith("R"):
        reply += sys.stdin.read(1)
    columns.append(int(re.search(r"(\\d+)R", reply)[1]) - 1)
json.dump(columns, open(sys.argv[2], "w"))
"""


def list_labels(script: str) -> list[str]:
    """Return labels of words of a script, and of pieces of three characters as a tokenizer may cut them."""
    words = SENTENCES[script].split()
    pieces = [word[i : i + 3] for word in words for i in range(0, len(word), 3)]
    return [label_token(text) for text in (*words[:4], *pieces)][:12]


def draw_rows(script: str, depth: ColourDepth) -> list[str]:
    """Draw a heatmap whose rows have labels of a script, and return the lines of its cells."""
    labels = list_labels(script)
    count = len(labels)
    weights = np.full((count, count), 1 / count, np.float32)
    capture = Capture("model", "text", (make_map(weights, make_tokens(labels)),))
    (picture,) = make_heatmaps(capture)
    screen = make_screen(100, depth)
    lines = [segments for segments in draw_picture_lines(picture, screen) if len(segments) > 2]
    return ["".join(segment.text for segment in segments) for segments in lines[:count]]


@pytest.fixture(scope="module")
def measure_in_libc() -> Callable[[str], int]:
    """Return the function of the C library of Linux that terminals ask for the width of a text."""
    name = ctypes.util.find_library("c")
    if not sys.platform.startswith("linux") or name is None:
        pytest.skip("needs the C library of Linux")
    libc = ctypes.CDLL(name)
    if not hasattr(libc, "gnu_get_libc_version"):
        pytest.skip("needs glibc")
    libc.newlocale.restype = libc.uselocale.restype = ctypes.c_void_p
    libc.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    libc.uselocale.argtypes = [ctypes.c_void_p]
    locale = libc.newlocale(1, b"C.UTF-8", None)  # of characters alone
    if not locale:
        pytest.skip("needs the locale C.UTF-8")

    def measure(text: str) -> int:
        before = libc.uselocale(locale)
        try:
            return sum(libc.wcwidth(ord(character)) for character in text)
        finally:
            libc.uselocale(before)

    return measure


def measure_in_tmux(rows: Sequence[str], folder: Path) -> list[int]:
    """Print rows in tmux, and return the column of the cursor after each."""
    program, question, answer = (folder / name for name in ("ask.py", "rows.json", "columns.json"))
    program.write_text(ASK_TERMINAL)
    question.write_text(json.dumps(rows))
    tmux = ["tmux", "-f", os.devnull, "-S", str(folder / "socket")]
    command = shlex.join([sys.executable, str(program), str(question), str(answer)])
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TERM": "screen"}
    # The server ends, and with it the command that waits, when the program in its window has.
    script = f"{command}; {shlex.join([*tmux, 'wait-for', '-S', 'done'])}"
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "200", "-y", "50", script, ";", "wait-for", "done"],
        check=True,
        env=environment,
        timeout=60,
    )
    return json.loads(answer.read_text())


def test_characters_are_as_wide_as_in_libc(measure_in_libc: Callable[[str], int]) -> None:
    """Every character that has been in Unicode for long, and may be drawn, has the width that glibc says."""
    old = unicodedata.ucd_3_2_0
    counted = Counter()
    for code in range(32, 0x30000):
        character = chr(code)
        category = unicodedata.category(character)
        is_drawn = escape(character) == fix_width(character) == character
        if not is_drawn or old.category(character) != category:
            continue
        counted[category] += 1
        found, expected = count_character_columns(character), measure_in_libc(character)
        assert found == expected, f"U+{code:04X} {unicodedata.name(character)}"
    assert counted["Mc"] > 90
    assert counted["Mn"] > 300
    assert counted["Lo"] > 80_000


@pytest.mark.parametrize("script", SENTENCES)
def test_rows_are_aligned_in_libc(script: str, measure_in_libc: Callable[[str], int]) -> None:
    """Rows of a picture with labels of a script are equally wide, and within the width of the screen."""
    for depth in ("shades", "truecolor", "ascii"):
        rows = draw_rows(script, depth)
        assert len(rows) == len(list_labels(script))
        (width,) = set(map(measure_in_libc, rows))
        assert width <= 100


@pytest.mark.parametrize("script", ["Devanagari", "Burmese"])
def test_commands_keep_to_the_width(
    script: str, call: Run, measure_in_libc: Callable[[str], int]
) -> None:
    """No line that a command prints is wider than --width, in scripts with spacing marks."""
    text = SENTENCES[script]
    for command in (
        ["show", text, "--words"],
        ["show", text, "--words", "--view", "tokens", "--token", "1"],
        ["compare", text, "--with", f"{text} 12", "--view", "maps"],
    ):
        done = call(*command, "--width", "50")
        assert done.returncode == 0, done.stderr
        assert max(map(measure_in_libc, done.stdout.splitlines())) <= 50, command


@pytest.mark.parametrize("script", SENTENCES)
def test_texts_fit_their_columns(script: str, measure_in_libc: Callable[[str], int]) -> None:
    """What is cut, padded, wrapped or stacked takes the columns that it should, in any script."""
    sentence = escape(SENTENCES[script])
    for width in range(1, 30):
        assert measure_in_libc(fit_columns(sentence, width)) == width
    for width in range(2, 30):
        lines = list(wrap_columns(sentence, width))
        assert max(map(measure_in_libc, lines)) <= width
        assert "".join(lines).replace(" ", "") == fix_width(sentence).replace(" ", "")
    labels = list_labels(script)
    for line in stack_labels(labels):
        assert measure_in_libc(line) <= 2 * len(labels)


def test_marks_are_stacked_with_their_letters() -> None:
    """A vowel sign stands beside its letter where labels are written downwards, if there is room."""
    assert stack_labels(["कि"]) == ["कि"]
    assert stack_labels(["கொ", "bc"]) == ["  b", "கொc"]
    assert stack_labels([unicodedata.normalize("NFD", "கொ")]) == ["கெ", "ா"]


@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_rows_are_aligned_in_tmux(tmp_path: Path) -> None:
    """The cursor of a real terminal stands in the same column after every row, in 40 scripts."""
    assert len(SENTENCES) >= 40
    drawn = {script: draw_rows(script, "shades") for script in SENTENCES}
    columns = iter(measure_in_tmux([row for rows in drawn.values() for row in rows], tmp_path))
    for script, rows in drawn.items():
        ends = {next(columns) for _ in rows}
        assert ends == {count_columns(rows[0])}, script
