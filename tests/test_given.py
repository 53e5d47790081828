import json
import pickle
import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save as save_tensors

import attnviz
from attnviz.analysis.statistics import find_sink, measure_statistics
from attnviz.errors import InputError
from attnviz.io import formats, untrusted
from attnviz.record import AttentionMap, Capture
from tests.tolerance import close

pytestmark = pytest.mark.numeric

FORMATS = ".npz", ".safetensors", ".json"
EVEN = np.full((2, 3, 4, 4), 0.25, np.float32)


def write(path: Path, weights: np.ndarray, **others: Any) -> Path:
    """Attention as others would write it; lists are labels, arrays are arrays."""
    lists = {name: value for name, value in others.items() if isinstance(value, list)}
    more = {name: value for name, value in others.items() if name not in lists}
    if path.suffix == ".npz":
        np.savez(
            path,
            weights=weights,
            **{name: np.array(value) for name, value in lists.items()},
            **more,
        )
    elif path.suffix == ".safetensors":
        metadata = {name: json.dumps(value) for name, value in lists.items()}
        path.write_bytes(save_tensors({"weights": np.ascontiguousarray(weights), **more}, metadata))
    else:
        nested = {name: value.tolist() for name, value in more.items()}
        path.write_text(json.dumps({"weights": weights.tolist(), **lists, **nested}))
    return path


def read(path: Path, weights: np.ndarray, **others: Any) -> Capture:
    return formats.load(write(path, weights, **others))


def refusal(path: Path) -> str:
    """The one line that is said of a file."""
    with pytest.raises(InputError) as told:
        formats.load(path)
    assert "\n" not in str(told.value)
    assert str(path) in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("suffix", FORMATS)
def test_keras_scores_are_read(suffix: str, tmp_path: Path) -> None:
    """What Keras' MultiHeadAttention returns, (batch 1, heads, T, S), is one layer; queries and keys have names."""
    weights = np.random.default_rng(0).dirichlet(np.ones(5), (1, 2, 3)).astype(np.float32)
    capture = read(
        tmp_path / f"keras{suffix}", weights, queries=["le", "chat", "dort"], keys=list("abcde")
    )
    (part,) = capture.maps
    assert (part.kind, part.method, part.layers, part.heads) == ("cross", "given", (0,), (0, 1))
    np.testing.assert_array_equal(part.weights, weights)
    assert part.visible.all()
    assert (capture.model, capture.text, capture.target) == (
        f"keras{suffix}",
        "a b c d e",
        "le chat dort",
    )
    assert [capture.target[token.start : token.end] for token in part.queries] == [
        "le",
        "chat",
        "dort",
    ]
    assert not capture.notes
    assert part.statistics.distance is None


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_missing_axes_are_added(suffix: str, dimensions: int, tmp_path: Path) -> None:
    """(query, key) and (head, query, key) are one layer; without tokens, the labels are places."""
    weights = EVEN[(0,) * (4 - dimensions)]
    capture = read(tmp_path / f"x{suffix}", weights)
    (part,) = capture.maps
    assert part.weights.shape == (1,) * (4 - dimensions) + weights.shape
    assert [token.text for token in part.keys] == ["0", "1", "2", "3"]
    assert (part.kind, capture.text, capture.target) == ("self", "0 1 2 3", None)
    assert not any(token.special for token in part.queries)
    for item in ("entropy", "received", "sink", "distance", "diagonal", "previous"):
        expected = getattr(measure_statistics(part.weights, part.visible, square=True), item)
        np.testing.assert_array_equal(getattr(part.statistics, item), expected)


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokens_stand_in_the_text(suffix: str, tmp_path: Path) -> None:
    """The text is the tokens joined by spaces; each token is the slice that it says it is, whatever it holds."""
    names = ["the", "", "ca t", "\x1b[31m\u202e"]
    capture = read(tmp_path / f"x{suffix}", EVEN, tokens=names, layers=[5, 7], heads=[0, 2, 9])
    (part,) = capture.maps
    assert capture.text == " ".join(names)
    assert (
        [capture.text[token.start : token.end] for token in part.keys]
        == [token.text for token in part.keys]
        == names
    )
    assert part.queries == part.keys
    assert (part.layers, part.heads) == ((5, 7), (0, 2, 9))


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "int64", "uint8"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_every_number_becomes_float32(dtype: str, suffix: str, tmp_path: Path) -> None:
    """Halves, doubles, integers and numbers of the other byte order are read as float32."""
    weights = np.eye(3)[::-1].astype(dtype if suffix == ".npz" else dtype.replace(">f4", "float32"))
    found = read(tmp_path / f"x{suffix}", weights).maps[0].weights
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, 0], np.eye(3)[::-1])


def test_bfloat16_is_read(tmp_path: Path) -> None:
    """Bfloat16, which NumPy does not know, comes out exactly, wherever in the file it stands."""
    weights = np.array([[0.5, 0.5], [0.25, 0.75]], np.float32)
    halves = (weights.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps(
        {
            "other": {"dtype": "U8", "shape": [6], "data_offsets": [0, 6]},
            "weights": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [6, 14]},
        }
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(6) + halves)
    np.testing.assert_array_equal(formats.load(path).maps[0].weights[0, 0], weights)


def test_a_type_of_eight_bits_is_refused(tmp_path: Path) -> None:
    """A type that NumPy cannot hold is named."""
    header = b'{"weights":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "F8_E4M3" in refusal(tmp_path / "x.safetensors")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_lower_triangle_is_causal(suffix: str, tmp_path: Path) -> None:
    """Self-attention with nothing at all above the diagonal is taken for causal, and a note says so."""
    weights = np.tri(4) / np.arange(1, 5)[:, None]
    capture = read(tmp_path / f"x{suffix}", weights)
    np.testing.assert_array_equal(capture.maps[0].visible[0, 0], np.tri(4, dtype=bool))
    assert capture.notes == ("no weight is above the diagonal: taken for a causal mask",)
    weights[0, :2] = 1 - 1e-7, 1e-7
    assert read(tmp_path / f"y{suffix}", weights).maps[0].visible.all()


def test_what_is_not_causal(tmp_path: Path) -> None:
    """One token, two texts, and a mask that is given are no ground to guess."""
    path = tmp_path / "x.npz"
    assert not read(path, np.ones((1, 1))).notes
    assert not read(path, np.eye(2), queries=["a", "b"], keys=["c", "d"]).notes
    capture = read(path, np.eye(2), visible=np.ones((2, 2), bool))
    assert not capture.notes
    assert capture.maps[0].visible.all()


def test_sums_are_told(tmp_path: Path) -> None:
    """Rows that do not sum to 1 are kept as they are, and a note says between what they lie; a masked row has none."""
    weights = np.array([[0.31, 0.0], [0.4, 2.0]], np.float32)
    capture = read(
        tmp_path / "x.npz", weights[[0, 1, 1]], visible=np.array([[True], [True], [True]])
    )
    assert capture.notes == ("rows sum to between 0.31 and 2.40, not 1: shown as they are",)
    np.testing.assert_array_equal(capture.maps[0].weights[0, 0], weights[[0, 1, 1]])
    nothing_seen = read(
        tmp_path / "x.npz", np.array([[0, 0], [0.5, 0.5]]), visible=np.array([[False], [True]])
    )
    assert not nothing_seen.notes
    assert not read(tmp_path / "x.npz", np.array([[0.5, 0.505], [0.5, 0.495]])).notes


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("shape", [(4, 4), (3, 1, 4), (2, 1, 1, 4), (1, 4)])
def test_visible_broadcasts(suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """A mask of 2 to 4 dimensions is spread over the weights."""
    visible = np.random.default_rng(1).random(shape) < 0.5
    weights = np.where(visible, EVEN, 0)
    part = read(tmp_path / f"x{suffix}", weights, visible=visible).maps[0]
    np.testing.assert_array_equal(part.visible, np.broadcast_to(visible, EVEN.shape))


def test_null_is_masked(tmp_path: Path) -> None:
    """In JSON, null is a masked cell, beside a mask that hides more."""
    path = tmp_path / "x.json"
    path.write_text('{"weights": [[1, null, 0], [0.5, 0.5, 0]], "visible": [[true, true, false]]}')
    part = formats.load(path).maps[0]
    np.testing.assert_array_equal(part.visible[0, 0], [[True, False, False], [True, True, False]])
    np.testing.assert_array_equal(part.weights[0, 0], [[1, 0, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    ("told", "weights", "others"),
    [
        (
            "go down to -3: are these scores? apply the softmax first",
            np.array([[-3.0, 1], [0, 1]]),
            {},
        ),
        ("up to 1e+13: that is no attention", np.full((2, 2), 1e13), {}),
        ("4 queries, but 3 are named", EVEN, {"tokens": list("abc")}),
        ("4 queries, but 5 are named", EVEN, {"tokens": list("abcde")}),
        ("4 keys, but 2 are named", EVEN, {"queries": list("abcd"), "keys": list("ab")}),
        ("3 heads, but 1 are named", EVEN, {"heads": [0]}),
        ("'layers' must be a list of whole numbers", EVEN, {"layers": [0, -1]}),
        ("'tokens' must be a list of texts", EVEN, {"tokens": [1, 2, 3, 4]}),
        ("names keys and tokens", EVEN, {"tokens": list("abcd"), "keys": list("abcd")}),
        ("names queries: give tokens, or queries and keys", EVEN, {"queries": list("abcd")}),
        ("5 dimensions", EVEN[None], {}),
        ("1 dimensions", EVEN[0, 0, 0], {}),
        ("empty", EVEN[:, :0], {}),
        ("does not fit weights of (2, 3, 4, 4)", EVEN, {"visible": np.ones((3, 4), bool)}),
        ("0 where masked", EVEN, {"visible": np.eye(4, dtype=bool)}),
    ],
)
def test_what_cannot_be_used(
    suffix: str, told: str, weights: np.ndarray, others: dict[str, Any], tmp_path: Path
) -> None:
    """Scores, wrong shapes, too many or too few labels: one line names what is wrong, with both numbers."""
    assert told in refusal(write(tmp_path / f"x{suffix}", weights, **others))


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_no_number(suffix: str, value: float, tmp_path: Path) -> None:
    """NaN, infinity and what float32 cannot hold are refused."""
    assert "NaN or infinity" in refusal(
        write(tmp_path / f"x{suffix}", np.array([[value, 1], [0.5, 0.5]]))
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[1, 0]]", "not a list"),
        ("{}", "no 'weights'"),
        ('{"weights": "evil"}', "nested lists"),
        ('{"weights": [[1, 0], [1]]}', "nested lists"),
        ('{"weights": [["1", "0"]]}', "nested lists"),
        ('{"weights": [[true, false]]}', "nested lists"),
        ('{"weights": [[NaN, 1]]}', "NaN is no number"),
        ('{"weights": [[1e999, 1]]}', "infinity"),
        (f'{{"weights": [[1{"0" * 400}, 1]]}}', "too large"),
        (f'{{"weights": [[1{"0" * 5000}, 1]]}}', "no JSON that can be read"),
        ('{"weights": ' + "[" * 80 + "1" + "]" * 80 + "}", "nested lists"),
        ('{"weights": ' + "[" * 40 + "1" + "]" * 40 + "}", "40 dimensions"),
        ('{"weights": [[1, 0]], "queries": "a", "keys": ["b", "c"]}', "'queries' must be a list"),
        ('{"weights": [[1]], "visible": [[1]]}', "nested lists of bool"),
        ('{"weights": [[1]]', "no JSON"),
        ("[" * 100000, "nested too deeply"),
        ("\ufeff", "no JSON"),
    ],
)
def test_json_that_cannot_be_used(text: str, told: str, tmp_path: Path) -> None:
    """Anything but nested lists of numbers is refused in a line."""
    (tmp_path / "x.json").write_text(text)
    assert told in refusal(tmp_path / "x.json")


def test_tensors_by_another_name(tmp_path: Path) -> None:
    """A file without weights says what it should hold; metadata that are no lists of texts are refused."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(save_tensors({"attn": EVEN}))
    assert "no 'weights'" in refusal(path)
    path.write_bytes(save_tensors({"weights": EVEN}, {"tokens": "the cat"}))
    assert "no JSON" in refusal(path)
    path.write_bytes(save_tensors({"weights": EVEN.astype(bool)}))
    assert "type bool" in refusal(path)


# Hostile .npz


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def npz(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray) -> bytes:
    file = BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("name", ["weights", "tokens"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    """Object arrays, and files that are pickles altogether, are refused; nothing in them runs."""
    evil = np.array([Evil(tmp_path / "ran")], dtype=object)
    path = npz(tmp_path / "x.npz", {"weights": npy(EVEN), name: npy(evil)})
    assert "pickle, which can run code" in refusal(path)
    path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    refusal(path)
    assert not (tmp_path / "ran").exists()


def npy_saying(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


@pytest.mark.parametrize(
    "member",
    [
        npy_saying(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 4)}", bytes(16)
        ),
        npy_saying("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}", bytes(16)),
        npy_saying("{'descr': '<U0', 'fortran_order': False, 'shape': (1099511627776,)}"),
        npy_saying("{'descr': 'evil', 'fortran_order': False, 'shape': (2, 2)}", bytes(16)),
        npy_saying("{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (2, 2)}", bytes(32)),
        npy_saying("__import__('os').system('false')"),
        npy_saying("(" * 9000),
        npy_saying("'\\d'" + " " * 20),
        b"\x93NUMPY\x03\x00" + bytes(30),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
        b"not an array",
        b"",
    ],
)
def test_an_array_that_lies_is_refused(member: bytes, tmp_path: Path) -> None:
    """An array whose header is broken, or promises more than the archive holds, is refused before room is made."""
    refusal(npz(tmp_path / "x.npz", {"weights": member}))


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to too much is refused by the size that it declares; one that declares too little is cut off."""
    path = npz(tmp_path / "x.npz", {"weights": npy(np.zeros((1, 1, 1000, 1000), np.float32))})
    assert path.stat().st_size < 20_000
    assert formats.load(path)
    with monkeypatch.context() as patch:
        patch.setattr(untrusted, "LARGEST_NPZ", 1 << 20)
        assert "unpacks to" in refusal(path)
    data = path.read_bytes()
    size = struct.pack("<L", 4_000_128)
    assert data.count(size) == 2  # before the member and in the directory
    path.write_bytes(data.replace(size, struct.pack("<L", 208)))
    refusal(path)


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    """A member that needs a password is refused in a line."""
    path = npz(tmp_path / "x.npz", {"weights": npy(EVEN)})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    assert "encrypted" in refusal(path)


# Statistics


def rows(heads: int = 2, queries: int = 4, keys: int = 4) -> st.SearchStrategy[np.ndarray]:
    """Weights (1, head, query, key) whose rows sum to 1."""
    scores = arrays(np.float32, (1, heads, queries, keys), elements=st.floats(-20, 20, width=32))
    return scores.map(lambda s: np.exp(s) / np.exp(s).sum(-1, keepdims=True))


@given(rows())
def test_statistics_agree_with_their_definitions(weights: np.ndarray) -> None:
    """Entropy, received, sink, distance, diagonal and previous are what a loop over the definition gives."""
    visible = np.tri(4, dtype=bool)
    weights = np.where(visible, weights, 0)
    weights /= weights.sum(-1, keepdims=True)
    found = measure_statistics(weights, visible, square=True)
    for head in range(2):
        w = weights[0, head].astype(float)
        entropy = [-sum(x * np.log(x) for x in row if x > 0) for row in w]
        received = [
            sum(w[q, k] for q in (1, 2, 3)) / 3 for k in range(4)
        ]  # query 0 sees one key only
        distance = sum(abs(q - k) * w[q, k] for q in range(4) for k in range(4)) / 4
        np.testing.assert_allclose(found.entropy[0, head], entropy, atol=1e-6)
        np.testing.assert_allclose(found.received[0, head], received, atol=1e-6)
        np.testing.assert_allclose(found.sink[0, head], received[0], atol=1e-6)
        np.testing.assert_allclose(found.distance[0, head], distance, atol=1e-6)
        np.testing.assert_allclose(
            found.diagonal[0, head], sum(w[q, q] for q in range(4)) / 4, atol=1e-6
        )
        np.testing.assert_allclose(
            found.previous[0, head], sum(w[q, q - 1] for q in (1, 2, 3)) / 3, atol=1e-6
        )


def test_statistics_of_even_attention() -> None:
    """Spread over n keys, entropy is log n and every key receives 1/n; queries that see nothing do not count."""
    visible = np.array([[True] * 4, [True] * 4, [False] * 4, [True] * 4])
    found = measure_statistics(np.where(visible, EVEN, 0), visible, square=True)
    np.testing.assert_allclose(
        found.entropy, np.broadcast_to(np.log(4) * visible[:, 0], (2, 3, 4)), **close(4)
    )
    np.testing.assert_allclose(found.received, 0.25, **close(4))
    np.testing.assert_allclose(found.diagonal, 0.25, **close(4))
    np.testing.assert_allclose(found.previous, 0.25, **close(4))
    np.testing.assert_allclose(found.distance, (6 + 4 + 6) / 4 / 3, **close(4))
    assert all(
        getattr(found, name).dtype == np.float32
        for name in ("entropy", "received", "sink", "distance")
    )


def test_statistics_between_two_texts() -> None:
    """Between two texts there is no distance, diagonal or previous token."""
    found = measure_statistics(
        np.full((1, 1, 2, 3), 1 / 3, np.float32), np.array(True), square=False
    )
    assert (found.distance, found.diagonal, found.previous) == (None, None, None)


def test_one_token_has_no_statistics_to_speak_of() -> None:
    """A query with one key has no choice: entropy 0 and not -0, nothing received, and no sink."""
    found = measure_statistics(np.ones((1, 1, 1, 1), np.float32), np.array(True), square=True)
    assert not np.signbit(found.entropy).any()
    assert not found.entropy.any()
    assert not found.received.any()
    assert (found.diagonal[0, 0], found.previous[0, 0], found.distance[0, 0]) == (1, 0, 0)
    assert find_sink(found.received, [0]) is None


def test_the_sink_is_a_candidate() -> None:
    """The sink is the candidate that received most on the average of layers and heads, whatever others received."""
    received = np.array([[[0.1, 0.6, 0.3], [0.3, 0.6, 0.1]]], np.float32)
    assert find_sink(received, [0, 1, 2]) == (1, pytest.approx(0.6))
    assert find_sink(received, [2, 0]) == (2, pytest.approx(0.2))


@settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(weights=rows(3, 2, 5))
def test_given_weights_come_back(weights: np.ndarray, tmp_path: Path) -> None:
    """Weights that were given, saved by us and read again, are the same bits."""
    capture = read(tmp_path / "x.npz", weights)
    attnviz.save(capture, tmp_path / "x.attn", force=True)
    found: AttentionMap = formats.load(tmp_path / "x.attn").maps[0]
    assert found.weights.tobytes() == weights.tobytes()
    assert found.method == "given"


# From Python


def test_arrays_of_ones_own() -> None:
    """Arrays become a capture without a file, to be measured as any other; what is wrong is said in a line."""
    weights = np.array([[[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]], np.float64)
    found = attnviz.from_arrays(weights, tokens=["a", "b", "c"])
    assert found.notes == ("no weight is above the diagonal: taken for a causal mask",)
    assert [token.text for token in found.maps[0].keys] == ["a", "b", "c"]
    np.testing.assert_allclose(found.maps[0].weights[0], weights, **close(1))
    assert attnviz.from_arrays(weights, visible=np.tri(3, dtype=bool)).notes == ()
    for wrong, told in (
        ({"weights": np.full((2, 2), np.nan)}, "NaN"),
        ({"weights": weights, "tokens": ["a"]}, "1 are named"),
        ({"weights": weights, "layers": ["x"]}, "whole numbers"),
        ({"weights": ["a"]}, "not numbers"),
    ):
        with pytest.raises(InputError, match=told):
            attnviz.from_arrays(**wrong)
