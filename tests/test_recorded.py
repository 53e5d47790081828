"""What some 250 command lines print, write and return stays as it was recorded, so that code can move safely.

To renew the record after a change that is meant: `pytest tests/test_recorded.py --update-golden`, then look at the
difference. Records hold on any machine: a number may differ in its last place, a picture by a shade.
"""

import base64
import hashlib
import json
import re
import shlex
import subprocess
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import Tiny
from tests.recorded_commands import every_command

pytestmark = pytest.mark.numeric
RECORDED = Path(__file__).parent / "recorded"
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")
SMALL = 1e-5  # below it a number is rounding, and differs from machine to machine
SIDE = 12  # cells on a side of a recorded picture
SHADES = 2  # by which a cell of 256 shades may differ
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of saved captures, arrays and texts for commands to read."""
    from attnviz.cli.main import main

    folder = tmp_path_factory.mktemp("files")
    (folder / "words.txt").write_text("The cat sat on the mat.\n\nThe dog ran to the house.\n")
    one_head = np.tril(np.arange(1, 17, dtype=np.float32).reshape(4, 4))
    np.savez(folder / "given.npz", weights=one_head / one_head.sum(-1, keepdims=True))
    for arguments in (
        ["The cat sat.", "-o", "cat.attn"],
        ["The dog sat.", "-o", "dog.attn"],
        ["The cat sat.", "-o", "norms.attn", "--weights", "norm"],
        ["The cat sat on the mat.", "-o", "tiles.attn", "--keep", "tiles", "--tiles", "4"],
        ["The cat sat on the mat.", "-o", "statistics.attn", "--keep", "statistics"],
    ):
        arguments[2] = str(folder / arguments[2])
        with pytest.raises(SystemExit) as ended:
            main.main(["capture", *arguments])
        assert ended.value.code == 0
    return folder


def describe_picture(picture: Image.Image) -> str:
    """Describe a picture by its size and its shades on a coarse raster."""
    coarse = picture.convert("RGBA").resize((SIDE, SIDE), Image.Resampling.BOX).convert("LA")
    rows = np.asarray(coarse)[..., 0]
    shades = "\n".join(bytes(row).hex() for row in rows)
    return f"{picture.width} x {picture.height}\n{shades}"


def describe_svg(text: str) -> str:
    """Describe an SVG by its size, how many elements of each kind it has, and the pictures inside it."""
    size = re.search(r"<svg[^>]*?viewBox=\"([^\"]*)\"", text, re.DOTALL)
    assert size is not None
    tags = Counter(re.findall(r"<([a-zA-Z]\w*)", text))
    counts = " ".join(f"{tag}:{count}" for tag, count in sorted(tags.items()))
    embedded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)", text)
    pictures = [
        describe_picture(Image.open(BytesIO(base64.b64decode(data)))) for data in embedded[:4]
    ]
    return "\n".join([f"viewBox {size[1]}", counts, *pictures])


def describe_pdf(data: bytes) -> str:
    """Describe a PDF by the boxes of its pages and the fonts in it."""
    boxes = re.findall(rb"/MediaBox \[([^\]]*)\]", data)
    fonts = sorted(set(re.findall(rb"/BaseFont /([\w+-]+)", data)))
    return f"boxes {[box.decode().strip() for box in boxes]}\nfonts {[font.decode() for font in fonts]}"


def describe_html(text: str) -> str:
    """Describe a page by what is in it besides the compressed weights.

    How long a compressed block is depends on its last digits, and so on the processor.
    """
    data = r"[A-Za-z0-9+/=]{200,}|(?<=>)[A-Za-z0-9+/=]{24,}(?=</script>)"
    without_data, blocks = re.subn(data, "DATA", text)
    element = re.compile(r"<(script|style)\b.*?</\1>", re.DOTALL)
    body = element.sub("", without_data)
    scripts = "".join(found[0] for found in element.finditer(without_data))
    length = len(NUMBER.sub("0", scripts))
    return f"{body.strip()}\n{blocks} blocks of data; {length} characters of script and style"


def describe_arrays(data: bytes) -> str:
    """Describe the arrays of an .npz by their names, shapes and sums, and what it says of them."""
    lines = []
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
    with np.load(BytesIO(data)) as arrays:
        for name in sorted(names):
            array = arrays[name.removesuffix(".npy")]
            number = float(array.sum(dtype=np.float64)) if array.dtype.kind in "fiub" else 0.0
            lines.append(f"{name} {array.dtype} {array.shape} {number:.4f}")
    return "\n".join(lines)


def describe_capture(data: bytes) -> str:
    """Describe a saved capture by the size of its header and the layout of its arrays."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    arrays = {
        name: (entry["dtype"], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    told = json.dumps(header.get("__metadata__", {}), sort_keys=True)
    return "\n".join([told, *(f"{name} {entry}" for name, entry in sorted(arrays.items()))])


def describe_file(path: Path) -> str:
    """Describe what a command wrote, as far as it is the same on any machine."""
    data = path.read_bytes()
    match path.suffix:
        case ".png":
            return describe_picture(Image.open(BytesIO(data)))
        case ".svg":
            return describe_svg(data.decode())
        case ".pdf":
            return describe_pdf(data)
        case ".html":
            return describe_html(data.decode())
        case ".npz":
            return describe_arrays(data)
        case ".attn":
            return describe_capture(data)
        case _:
            return data.decode()


def describe_run(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """Describe what a command printed, returned and wrote into a folder."""
    parts = [f"exit {done.returncode}", f"--- stdout\n{done.stdout}", f"--- stderr\n{done.stderr}"]
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    parts += [f"--- {path.relative_to(folder)}\n{describe_file(path)}" for path in written]
    text = re.sub(r"\b[0-9a-f]{64}\b", "DIGEST", "\n".join(parts))  # of numbers to their last bit
    return text.rstrip() + "\n"


def agree(one: str, other: str) -> bool:
    """Tell whether two numbers are the same but for rounding: in their last place, or where both are rounding."""
    if one == other:
        return True
    if not set(".e") & set(one + other):
        return False
    first, second = float(one), float(other)
    decimals = min(len(text.split("e")[0].partition(".")[2]) for text in (one, other))
    last_place = 10.0**-decimals if "e" not in one + other else 0.0
    allowed = max(1.001 * last_place if decimals < 5 else 0.0, SMALL, 1e-4 * abs(first))
    return abs(first - second) <= allowed


def difference(found: str, recorded: str) -> str | None:
    """Return where two records differ by more than rounding, or None."""
    for line, (now, then) in enumerate(
        zip(found.splitlines(), recorded.splitlines(), strict=False), 1
    ):
        shade_lines = [re.fullmatch(rf"[0-9a-f]{{{2 * SIDE}}}", text) for text in (now, then)]
        if all(shade_lines):
            shades = [
                np.frombuffer(bytes.fromhex(text), np.uint8).astype(int) for text in (now, then)
            ]
            if np.abs(shades[0] - shades[1]).max() <= SHADES:
                continue
        elif NUMBER.split(now) == NUMBER.split(then):
            pairs = zip(NUMBER.findall(now), NUMBER.findall(then), strict=True)
            if all(agree(*pair) for pair in pairs):
                continue
        return f"line {line}:\n now  {now[:2000]}\n then {then[:2000]}"
    return (
        None if found.count("\n") == recorded.count("\n") else "one has more lines than the other"
    )


def record_name(group: str, command: str) -> str:
    """Return the file name of a command's record: its group, its words, and a digest where they are long."""
    words = re.sub(r"[^\w.=+-]+", "_", command).strip("_")
    digest = hashlib.sha256(command.encode()).hexdigest()[:6]
    return f"{group}.{words[:70]}.{digest}.txt"


@pytest.mark.parametrize(
    ("group", "command"), every_command(), ids=[line for _, line in every_command()]
)
def test_nothing_changed(
    group: str, command: str, call: Call, files: Path, minilm: Path, tiny: Tiny, tmp_path: Path,
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Output, exit code and files of a command are those that were recorded."""
    monkeypatch.setenv("COLUMNS", "100")
    links = {"FILES": files, "MINILM": minilm}
    links |= {f"TINY/{name}": tiny(name) for name in re.findall(r"TINY/(\w+)", command)}
    for name, target in links.items():
        link = tmp_path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(target)
    found = f"$ attnviz {command}\n{describe_run(call(*shlex.split(command)), tmp_path)}"
    path = RECORDED / record_name(group, command)
    if request.config.getoption("--update-golden"):
        path.write_text(found, "utf-8")
    assert difference(found, path.read_text("utf-8")) is None


def test_every_record_is_of_a_command() -> None:
    """No record is left of a command that is not run any more."""
    assert {path.name for path in RECORDED.iterdir()} == {
        record_name(*entry) for entry in every_command()
    }


def test_a_change_is_found() -> None:
    """Another word, another number and another shade are told; the last place of a number is not."""
    assert difference("a 0.31 b\n", "a 0.32 b\n") is None
    assert difference("a 0.31 b\n", "a 0.34 b\n") is not None
    assert difference("layer 3\n", "layer 4\n") is not None
    assert difference("fidelity 1.2e-07\n", "fidelity 9.1e-08\n") is None
    assert difference("a b\n", "a c\n") is not None
    assert difference("a\nb\n", "a\n") is not None
    assert difference("00" * SIDE + "\n", "01" * SIDE + "\n") is None
    assert difference("00" * SIDE + "\n", "09" * SIDE + "\n") is not None
