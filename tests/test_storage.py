import json
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import attnviz
from attnviz.analysis.segments import sum_key_groups
from attnviz.analysis.statistics import measure_statistics
from attnviz.errors import InputError, OutputError, UsageError
from attnviz.io import files, formats
from attnviz.io.tensor_file import format_tensors
from attnviz.record import (
    AttentionMap,
    Capture,
    Edges,
    KeyGroups,
    Segment,
    Statistics,
    Tiles,
    Token,
)
from tests.captures import make_capture, make_tokens

TEXTS = st.text(st.characters(), max_size=6)  # surrogates and control characters too
NUMBERS = st.integers(0, 2**31)
FIXTURES = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def captures(draw: st.DrawFn) -> Capture:
    """Captures of every kind: any mask, any of weights, tiles, statistics and edges kept."""
    maps = tuple(draw(maps_of()) for _ in range(draw(st.integers(1, 2))))
    optional = st.none() | TEXTS
    return Capture(
        draw(TEXTS),
        draw(TEXTS),
        maps,
        tuple(draw(st.lists(TEXTS, max_size=2))),
        draw(optional),
        draw(optional),
        draw(st.none() | st.floats(0, 1e9)),
    )


@st.composite
def maps_of(draw: st.DrawFn) -> AttentionMap:
    n_layers, n_heads, n, m = (draw(st.integers(1, most)) for most in (2, 3, 5, 5))
    square = draw(st.booleans())
    queries = draw(tokens_of(n))
    keys = queries if square else draw(tokens_of(m))
    rng = np.random.default_rng(draw(NUMBERS))
    shape = n_layers, n_heads, n, len(keys)
    heads = (
        draw(st.sampled_from([tuple(range(n_heads)), ("mean",)]))
        if n_heads == 1
        else tuple(range(n_heads))
    )
    visible = draw(
        st.sampled_from([np.True_, np.tri(n, len(keys), dtype=bool), rng.random(shape) < 0.7])
    )
    weights = np.where(visible, rng.random(shape, np.float32), np.float32(0))
    weights /= weights.sum(-1, keepdims=True) + np.float32(1e-3)
    kept: dict[str, Any] = {}
    if draw(st.booleans()):
        kept["statistics"] = measure_statistics(weights, np.broadcast_to(visible, shape), square)
    if draw(st.booleans()):
        order = np.argsort(-weights, -1)[..., :2]
        kept["edges"] = Edges(order.astype(np.int32), np.take_along_axis(weights, order, -1))
    if draw(st.booleans()):
        numbers = np.sort(rng.permutation(len(keys)) // 2).astype(np.int32)
        mask = np.broadcast_to(visible, (1, 1, n, len(keys)) if np.ndim(visible) < 4 else shape)
        kept["groups"] = sum_key_groups(weights, mask, numbers)
    form = draw(st.sampled_from(["weights", "tiles", "both", "neither"]))
    if form in ("tiles", "both"):
        most = 3 if form == "tiles" else 1
        kept["tiles"], visible = tiled(
            weights, draw(st.integers(1, most)), draw(st.integers(1, most))
        )
    method = draw(st.sampled_from(["attention", "given"]))
    kind = draw(st.sampled_from(["self", "encoder", "decoder"])) if square else "cross"
    layers = tuple(range(3, 3 + n_layers))
    return AttentionMap(
        kind,
        layers,
        heads,
        queries,
        keys,
        weights if form in ("weights", "both") else None,
        visible,
        method,
        **kept,
    )


def tokens_of(count: int) -> st.SearchStrategy[tuple[Token, ...]]:
    token = st.builds(
        lambda text, number, start, length, special, segment: Token(
            text, number, start, start + length, special, segment
        ),
        TEXTS,
        st.integers(-1, 2**31),
        st.integers(0, 10**6),
        st.integers(0, 10),
        st.booleans(),
        st.integers(0, 1),
    )
    return st.lists(token, min_size=count, max_size=count).map(tuple)


def tiled(weights: np.ndarray, height: int, width: int) -> tuple[Tiles, np.ndarray]:
    """Tiles, and which of them hold a weight."""
    rows, columns = range(0, weights.shape[2], height), range(0, weights.shape[3], width)
    parts = [[weights[:, :, i : i + height, j : j + width] for j in columns] for i in rows]
    mean, largest = (
        np.moveaxis(
            np.array([[getattr(part, how)((2, 3)) for part in row] for row in parts]),
            (0, 1),
            (2, 3),
        )
        for how in ("mean", "max")
    )
    return Tiles(mean, largest, height, width), mean > 0


def assert_same(found: Capture, expected: Capture) -> None:
    """Every field of two captures, arrays bit for bit."""
    for item in fields(Capture):
        if item.name != "maps":
            assert getattr(found, item.name) == getattr(expected, item.name)
    for one, other in zip(found.maps, expected.maps, strict=True):
        for item in fields(AttentionMap):
            assert_same_part(getattr(one, item.name), getattr(other, item.name))


def assert_same_part(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, (Tiles, Statistics, Edges, KeyGroups)):
        for item in fields(expected):
            assert_same_part(getattr(found, item.name), getattr(expected, item.name))
    else:
        assert found == expected


def through(capture: Capture, folder: Path, suffix: str) -> Capture:
    """A capture saved and read again."""
    attnviz.save(capture, folder / f"x{suffix}", force=True)
    return formats.load(folder / f"x{suffix}")


# Our own formats


@FIXTURES
@given(capture=captures())
def test_attn_gives_everything_back(capture: Capture, tmp_path: Path) -> None:
    """A capture comes back from .attn bit for bit: texts, tokens, notes, weights, masks, tiles, statistics, edges."""
    assert_same(through(capture, tmp_path, ".attn"), capture)


@FIXTURES
@given(capture=captures())
def test_json_gives_everything_back(capture: Capture, tmp_path: Path) -> None:
    """So it does from .json, but for statistics beside the weights from which they can be computed."""
    maps = (
        part if part.weights is None else replace(part, statistics=None) for part in capture.maps
    )
    assert_same(through(capture, tmp_path, ".json"), replace(capture, maps=tuple(maps)))


@FIXTURES
@given(capture=captures())
def test_json_is_ascii_without_nan(capture: Capture) -> None:
    """The document is ASCII, and strict parsers read it."""
    text = formats.format_json(capture)
    assert text.isascii()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("suffix", [".attn", ".json"])
def test_words_and_segments_come_back(capture: Capture, tmp_path: Path, suffix: str) -> None:
    """What units are, and the messages of a chat, are kept."""
    part = replace(capture.maps[0], unit="word", statistics=None)
    given = replace(capture, maps=(part,), segments=(Segment("user", 0, 3), Segment("<b>", 4, 11)))
    assert_same(through(given, tmp_path, suffix), given)


def test_json_tells_what_was_kept(capture: Capture) -> None:
    """Weights, tiles and edges are there if kept, statistics where there are no weights, null for what was not made."""
    part = capture.maps[0]
    found = measure_statistics(part.weights, part.visible, square=False)
    tiles, visible = tiled(part.weights, 3, 2)
    edges = Edges(np.zeros((2, 2, 4, 1), np.int32), part.weights[..., :1])
    whole = replace(part, statistics=found, edges=edges)
    pooled = replace(part, weights=None, visible=visible, tiles=tiles, statistics=found)
    document = json.loads(
        formats.format_json(
            replace(capture, maps=(whole, pooled), pair="b", target="c", fidelity=0.5)
        )
    )
    assert (document["pair"], document["target"], document["fidelity"]) == ("b", "c", 0.5)
    kept = [
        part.keys() & {"weights", "visible", "tiles", "statistics", "edges"}
        for part in document["maps"]
    ]
    assert kept == [{"weights", "edges"}, {"tiles", "statistics"}]
    assert document["maps"][0]["keys"][1] == {
        name: v for name, v in part.keys[1]._asdict().items() if name != "segment"
    }
    assert document["maps"][1]["statistics"]["distance"] is None
    assert document["maps"][1]["tiles"].keys() == {"height", "width", "mean", "max"}
    bare = json.loads(formats.format_json(capture))
    assert bare["fidelity"] is None
    assert not {"pair", "target"} & bare.keys()


def test_npz_is_for_numpy(capture: Capture, tmp_path: Path) -> None:
    """A .npz holds weights, what is visible, texts of tokens, layers and heads, and what its numbers are."""
    mean = replace(capture, maps=(capture.maps[0].reduced("mean"),))
    for source in (capture, mean):
        part, found = source.maps[0], through(source, tmp_path, ".npz").maps[0]
        with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
            named = {"weights", "visible", "queries", "keys", "layers", "heads", "kind", "units"}
            assert set(arrays) == named | {"query_places", "key_places", "method", "unit"}
            assert list(arrays["keys"]) == [token.text for token in part.keys]
        assert_same_part(found.weights, part.weights)
        assert_same_part(found.visible, part.visible)
        assert (found.layers, found.heads, found.method) == (part.layers, part.heads, part.method)


def test_npz_is_for_one_map(capture: Capture, tmp_path: Path) -> None:
    """A capture of several maps, or without weights, is refused for .npz, and nothing is written."""
    part = capture.maps[0]
    for maps in ((part, part), (replace(part, weights=None),)):
        with pytest.raises(UsageError, match=r"one map.*\.attn"):
            attnviz.save(replace(capture, maps=maps), tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())


def test_attn_stores_nothing_twice(capture: Capture) -> None:
    """A mask that repeats itself is stored once, and so are the tokens of all maps."""
    several_maps = replace(capture, maps=(*capture.maps, capture.maps[0].reduced("mean")))
    data = b"".join(formats.format_attn(several_maps))
    assert load_tensors(data)["maps.0.visible"].shape == (1, 1, 4, 4)
    assert data.count(b"cat") == 2  # in the text and in the list


def test_arrays_are_written_as_the_library_writes_them() -> None:
    """A file of arrays has the bytes of safetensors' own, however the arrays lie in memory."""
    numbers = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    tensors = {
        "b": numbers,
        "window": numbers[:, :, 1:3, 2:],
        "turned": numbers.transpose(2, 3, 0, 1),
        "a": np.arange(6, dtype=np.int32).reshape(2, 3),
        "mask": numbers[0] > 0,
        "empty": np.zeros((0, 3), np.float32),
        "one": np.array(True),
    }
    metadata = {"attnviz": '{"text": "caf\u00e9 \\"\x1b\u2028 \\n"}'}
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    contiguous["one"] = tensors["one"]  # ascontiguousarray would give it an axis
    assert b"".join(format_tensors(tensors, metadata)) == save_tensors(contiguous, metadata)


def test_a_header_that_no_reader_takes_is_refused(capture: Capture, tmp_path: Path) -> None:
    """A header that is too long is one line, and leaves no file."""
    huge = replace(capture, notes=("x" * 100_000_001,))
    with pytest.raises(OutputError, match="its header takes 100 MB"):
        attnviz.save(huge, tmp_path / "x.attn")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".attn", ".json"])
def test_writing_makes_no_copy_of_the_weights(tmp_path: Path, suffix: str) -> None:
    """Writing a capture takes a small part of the memory of its weights."""
    shape = (60, 1, 40, 40) if suffix == ".json" else (8, 4, 256, 256)
    weights = np.full(shape, 1 / shape[-1], np.float32)
    tokens = make_tokens(" ".join("a" * shape[-1]))
    layers, heads = tuple(range(shape[0])), tuple(range(shape[1]))
    one_map = AttentionMap("self", layers, heads, tokens, tokens, weights, np.array(True))
    text = "a " * shape[-1]
    tracemalloc.start()
    try:
        attnviz.save(Capture("m", text, (one_map,)), tmp_path / f"x{suffix}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    size_of_file = (tmp_path / f"x{suffix}").stat().st_size
    assert peak < size_of_file / 2


@pytest.mark.parametrize("suffix", formats.WRITERS)
def test_files_are_reproducible(capture: Capture, tmp_path: Path, suffix: str) -> None:
    """The same capture gives the same bytes under any name: no date, no path inside."""
    for name in ("a", "b"):
        attnviz.save(capture, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_saving_copies_weights_once(tmp_path: Path) -> None:
    """Writing .attn takes the memory of the file, and no second copy."""
    weights = np.zeros((16, 256, 256), np.float32)
    capture = make_capture(weights)
    tracemalloc.start()
    attnviz.save(capture, tmp_path / "x.attn")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * weights.nbytes


def test_nothing_here_loads_torch(capture: Capture, tmp_path: Path) -> None:
    """Captures are saved and read without torch, and without transformers or matplotlib."""
    for suffix in formats.WRITERS:
        attnviz.save(capture, tmp_path / f"x{suffix}")
    (tmp_path / "x.safetensors").write_bytes(save_tensors({"weights": np.eye(2, dtype=np.float32)}))
    code = (
        "import sys; from attnviz.io.formats import READERS, load, save\n"
        f"for suffix in READERS: save(load({str(tmp_path / 'x')!r} + suffix), {str(tmp_path)!r} + suffix + '.attn')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "safetensors" in done.stdout.split()
    assert not {"torch", "transformers", "matplotlib", "tokenizers", "rich"} & set(
        done.stdout.split()
    )


# Writing


def test_saving_keeps_what_is_there(capture: Capture, tmp_path: Path) -> None:
    """An existing file is replaced with force only; a suffix or a folder that is not there is said."""
    path = tmp_path / "x.attn"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        attnviz.save(capture, path)
    assert path.read_text() == "mine"
    attnviz.save(capture, str(path), force=True)
    assert_same(formats.load(str(path)), capture)
    with pytest.raises(UsageError, match=r"\.attn, \.json, \.npz"):
        attnviz.save(capture, tmp_path / "x.pt")
    with pytest.raises(OutputError, match="does not exist"):
        attnviz.save(capture, tmp_path / "no" / "x.attn")


@pytest.mark.parametrize("suffix", formats.WRITERS)
def test_a_failed_write_leaves_nothing(
    capture: Capture, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the last step of writing fails, the old file is whole and nothing else is in the folder."""
    path = tmp_path / f"x{suffix}"
    path.write_text("mine")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.Path, "replace", fail)
    with pytest.raises(OutputError, match="no space left"):
        attnviz.save(capture, path, force=True)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine"]


def test_a_full_disk_leaves_nothing(capture: Capture, tmp_path: Path) -> None:
    """If the system refuses to write on halfway, it is an OutputError, and nothing is left of the file."""
    attnviz.save(capture, tmp_path / "x.attn")
    code = (
        "import resource; from attnviz.errors import OutputError; from attnviz.io.formats import load, save\n"
        f"capture = load({str(tmp_path / 'x.attn')!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        f"try: save(capture, {str(tmp_path / 'y.attn')!r})\n"
        "except OutputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "file too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["x.attn"]


# Broken and hostile files of ours


def refusal(path: Path, data: bytes) -> str:
    """The one line that is said of a file."""
    path.write_bytes(data)
    with pytest.raises(InputError) as told:
        formats.load(path)
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)
    return str(told.value)


def usable(path: Path, data: bytes) -> bool:
    """Whether a file can be read; if not, that is an InputError."""
    path.write_bytes(data)
    try:
        formats.load(path)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("suffix", formats.WRITERS)
def test_a_cut_file_is_refused(capture: Capture, tmp_path: Path, suffix: str) -> None:
    """A file that was cut short anywhere is refused in a line."""
    attnviz.save(capture, tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes().rstrip(b"\n")
    for length in {*range(20), *range(20, len(data), 61), len(data) - 1}:
        refusal(tmp_path / f"cut{suffix}", data[:length])


@pytest.mark.parametrize("suffix", formats.WRITERS)
def test_a_flipped_byte_is_no_traceback(capture: Capture, tmp_path: Path, suffix: str) -> None:
    """Whatever byte is damaged, the file is read or refused in a line."""
    attnviz.save(capture, tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    readable = 0
    for place in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        readable += usable(tmp_path / f"x{suffix}", bytes(damaged))
    assert readable < len(data) // 3


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    """A file that is not there, a folder and a pipe are InputErrors; a suffix that is not there is wrong usage."""
    os.mkfifo(tmp_path / "pipe.attn")
    (tmp_path / "folder.attn").mkdir()
    for name, told in {
        "x.attn": "no such file",
        "folder.attn": "no file",
        "pipe.attn": "no file",
    }.items():
        with pytest.raises(InputError, match=told):
            formats.load(tmp_path / name)
    with pytest.raises(InputError):
        formats.load("a\0b.json")
    with pytest.raises(UsageError, match=r"\.attn, \.json, \.npz, \.safetensors"):
        formats.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"", "cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "too large"),
        (struct.pack("<Q", 2) + b"[]", "damaged"),
        (struct.pack("<Q", 2) + b"{}", "no header of attnviz"),
        (b'{"w":{"dtype":"F32","shape":[4611686018427387904,2],"data_offsets":[0,8]}}', "damaged"),
        (
            b'{"w":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
            "damaged",
        ),
        (b'{"__metadata__":{"attnviz":"{"}}', "JSON"),
        (b'{"__metadata__":{"attnviz":"[]"}}', "schema"),
        (b'{"__metadata__":{"attnviz":"' + b"[" * 9999 + b'"}}', "nested"),
    ],
)
def test_a_lying_header_is_refused(header: bytes, told: str, tmp_path: Path) -> None:
    """Headers of .attn that are absurd, or promise what is not there, are refused before anything is made of them."""
    data = struct.pack("<Q", len(header)) + header if header.startswith(b"{") else header
    assert told in refusal(tmp_path / "x.attn", data)


Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]
CHANGES: dict[str, Change] = {
    "schema": lambda head, _: head.update(schema="attnviz/2"),
    "no attention map": lambda head, _: head.update(maps=[]),
    "'model' must be": lambda head, _: head.update(model=3),
    "'text' must be": lambda head, _: head.pop("text"),
    "'notes' must be a list of texts": lambda head, _: head.update(notes=[1]),
    "'fidelity' must be of type": lambda head, _: head.update(fidelity=True),
    "'fidelity' must be a finite": lambda head, _: head.update(fidelity=10**400),
    "list of objects": lambda head, _: head.update(maps=[[]]),
    "names list 7": lambda head, _: head["maps"][0].update(queries=7),
    "kind": lambda head, _: head["maps"][0].update(kind="evil"),
    "'heads' must be": lambda head, _: head["maps"][0].update(heads=["a", "b"]),
    "'layers' must be a list of whole": lambda head, _: head["maps"][0].update(layers=[0, True]),
    "2 layers, but 1 are named": lambda head, _: head["maps"][0].update(layers=[0]),
    "without layers": lambda head, _: head["maps"][0].update(layers=[]),
    "4 queries, but 3 are named": lambda head, _: head["tokens"][0].pop(),
    "4 queries, but 5 are named": lambda head, _: head["tokens"][0].append(head["tokens"][0][0]),
    "no place": lambda head, _: head["tokens"][0][1].update(start=-1),
    "number that is too large": lambda head, _: head["tokens"][0][1].update(id=10**30),
    "'special' must be of type bool": lambda head, _: head["tokens"][0][1].update(special=0),
    "no visible": lambda _, arrays: arrays.pop("maps.0.visible"),
    "type float64": lambda _, arrays: arrays.update({"maps.0.weights": np.zeros((2, 2, 4, 4))}),
    "type uint8": lambda _, arrays: arrays.update(
        {"maps.0.visible": np.ones((1, 1, 4, 4), np.uint8)}
    ),
    "unit of a map": lambda head, _: head["maps"][0].update(unit="syllable"),
    "segment has no place": lambda head, _: head.update(
        segments=[{"name": "a", "start": 3, "end": 1}]
    ),
    "'name' must be of type str": lambda head, _: head.update(segments=[{"start": 0, "end": 1}]),
    "visible has the shape": lambda _, arrays: arrays.update(
        {"maps.0.visible": np.ones((4, 4), bool)}
    ),
    "0 where masked": lambda _, arrays: arrays.update(
        {"maps.0.visible": np.eye(4, dtype=bool)[None, None]}
    ),
    "apply the softmax": lambda _, arrays: arrays["maps.0.weights"].__setitem__((0, 0, 0, 0), -2),
    "weights are not all finite": lambda _, arrays: arrays["maps.0.weights"].__setitem__(
        (0, 0, 0, 0), np.nan
    ),
    "at most 1, not 3": lambda _, arrays: arrays["maps.0.weights"].__setitem__((0, 0, 0, 0), 3),
    "no statistics.sink": lambda _, arrays: arrays.pop("maps.0.statistics.sink"),
    "received has the shape": lambda _, arrays: arrays.update(
        {"maps.0.statistics.received": np.zeros(2, np.float32)}
    ),
    "entropy holds NaN": lambda _, arrays: arrays["maps.0.statistics.entropy"].fill(np.inf),
    "keys 0 to 4 of 4": lambda _, arrays: arrays["maps.0.edges.keys"].fill(4),
    "edges.weights has the shape": lambda _, arrays: arrays.update(
        {"maps.0.edges.weights": np.zeros(2, np.float32)}
    ),
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_wrong_header_is_refused(told: str, capture: Capture, tmp_path: Path) -> None:
    """Whatever a .attn says of itself that cannot be is refused by name."""
    part = capture.maps[0]
    edges = Edges(np.zeros((2, 2, 4, 1), np.int32), part.weights[..., :1])
    part = replace(
        part, edges=edges, statistics=measure_statistics(part.weights, part.visible, square=True)
    )
    attnviz.save(replace(capture, maps=(part,)), tmp_path / "x.attn")
    with safe_open(tmp_path / "x.attn", framework="np") as file:
        header = json.loads(file.metadata()["attnviz"])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    CHANGES[told](header, arrays)
    assert told in refusal(
        tmp_path / "x.attn", save_tensors(arrays, {"attnviz": json.dumps(header)})
    )


@pytest.mark.parametrize("size", [0, -1, 3.5, None, 10**400])
def test_tiles_must_fit(size: Any, capture: Capture, tmp_path: Path) -> None:
    """Tiles of no tokens, or of more than there are tiles for, are refused."""
    part = capture.maps[0]
    tiles, visible = tiled(part.weights, 2, 2)
    document = json.loads(
        formats.format_json(
            replace(capture, maps=(replace(part, weights=None, visible=visible, tiles=tiles),))
        )
    )
    document["maps"][0]["tiles"]["width"] = size
    refusal(tmp_path / "x.json", json.dumps(document).encode())


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a JSON document stand."""
    inner = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    return [
        *([path] if path else []),
        *(place for key, value in inner for place in places(value, (*path, key))),
    ]


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(capture=captures(), junk=JUNK, data=st.data())
def test_json_with_junk_is_no_traceback(
    capture: Capture, junk: Any, data: st.DataObject, tmp_path: Path
) -> None:
    """A document with any value replaced by any other is read or refused in a line; so is one of other makers."""
    document = json.loads(formats.format_json(capture))
    if data.draw(st.booleans()):
        document = {
            "weights": [[1, 0.0], [0.5, None]],
            "tokens": ["a", "b"],
            "heads": [1],
            "visible": [[True, False]],
        }
    *before, last = data.draw(st.sampled_from(places(document)))
    node = document
    for step in before:
        node = node[step]
    node[last] = junk
    usable(tmp_path / "x.json", json.dumps(document).encode())


def test_memory_is_checked_first(
    capture: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that would take more than half of the free memory is refused, whatever its format."""
    for suffix in formats.WRITERS:
        attnviz.save(capture, tmp_path / f"x{suffix}")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for suffix in formats.WRITERS:
        with pytest.raises(InputError, match="half of the"):
            formats.load(tmp_path / f"x{suffix}")
