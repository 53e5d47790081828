"""Folders and files that nobody vouches for: one line, an exit code, and bounds on time and memory."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attnviz.analysis import statistics
from attnviz.analysis.statistics import measure_statistics
from attnviz.errors import InputError, ModelError
from attnviz.io.formats import format_json, format_matrix_json, load, save
from attnviz.lm import store
from attnviz.models import load_model
from attnviz.models.chat_process import ChatTemplateError, write_chat_apart
from attnviz.models.panics import hold_stderr
from attnviz.models.tokenizer_bounds import (
    MOST_ADDED,
    MOST_EXTRA,
    require_bounded_tokenizer,
)
from attnviz.request import Prompt, Request
from tests.captures import make_capture, make_map
from tests.commands import require_failure, run_bounded
from tests.conftest import Tiny
from tests.tiny import TORCH

GIGABYTE = 1 << 30
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
Change = Callable[[dict[str, Any]], Any]


def copy_folder(source: Path, target: Path) -> Path:
    """Copy a model's folder, its weights as a link, as the cache of the hub has them."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (target / file.name).symlink_to(file)
        elif file.is_file():
            shutil.copy(file, target)
    return target


def edit_json(path: Path, change: Change) -> None:
    """Change the value of a JSON file."""
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))


# Files


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "other"])
@pytest.mark.parametrize("kind", ["a pipe", "a device"])
def test_special_files_are_refused(name: str, kind: str, minilm: Path, tmp_path: Path) -> None:
    """A pipe that nobody writes to and a device without an end are not read, whatever their name."""
    folder = copy_folder(minilm, tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero")
    before = sorted(tmp_path.rglob("*"))
    require_failure(run_bounded("show", "hi", "-m", str(folder)), 3, name, kind)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["config.json", "modules.json", "tokenizer_config.json"])
def test_files_larger_than_their_kind_are_refused(name: str, minilm: Path, tmp_path: Path) -> None:
    """A sparse file costs nothing to make: its size is looked at before it is read."""
    folder = copy_folder(minilm, tmp_path / "model")
    os.truncate(folder / name, GIGABYTE)
    require_failure(run_bounded("show", "hi", "-m", str(folder)), 3, name, "1024 MB")


def test_weights_larger_than_their_config_says_are_refused(tmp_path: Path) -> None:
    """Those of a model of attnviz's own are read whole: not those of a sparse file."""
    folder = copy_folder(store.BUILTIN, tmp_path / "model")
    weights = folder / store.WEIGHTS
    weights.unlink()
    weights.touch()
    os.truncate(weights, GIGABYTE)
    require_failure(run_bounded("show", "hi", "-m", str(folder)), 3, "1024 MB")


def test_links_of_the_hub_are_followed(minilm: Path, tmp_path: Path) -> None:
    """A snapshot of the hub's cache holds nothing but links to its blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(minilm.iterdir())):
        if file.is_file():
            (blobs / str(number)).symlink_to(file)
            (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert load_model(str(snapshot)).capture(Prompt("hi"), Request()).maps


WATCHED = """
import sys
outside = sys.argv.pop(1)
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(outside):
        print("OPENED", arguments[0])
sys.addaudithook(watch)
from attnviz.cli.main import main
main()
"""


def name_outside_weights(folder: Path, outside: Path) -> None:
    """Let the index of a folder name weights in another folder."""
    weights = folder / "model.safetensors"
    names = load_model(str(folder)).quick.checkpoint.tensors  # type: ignore[attr-defined]
    weights.rename(outside / weights.name)
    file = f"../{outside.name}/{weights.name}"
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "small.safetensors").symlink_to(outside / weights.name)


def name_outside_tokenizer(folder: Path, outside: Path) -> None:
    """Let the settings of a tokenizer name a file in another folder."""
    shutil.copy(folder / "tokenizer.json", outside / "tokenizer.4.0.0.json")
    name = f"../{outside.name}/tokenizer.4.0.0.json"
    edit_json(folder / "tokenizer_config.json", lambda it: it.update(fast_tokenizer_files=[name]))


@pytest.mark.parametrize("name_outside", [name_outside_weights, name_outside_tokenizer])
@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_nothing_outside_the_folder_is_opened(
    engine: str, name_outside: Callable[[Path, Path], None], minilm: Path, tmp_path: Path
) -> None:
    """No file of a folder can name another one elsewhere."""
    folder = copy_folder(minilm, tmp_path / "model")
    outside = tmp_path / "outside"
    outside.mkdir()
    name_outside(folder, outside)
    arguments = ["show", "hi", "-m", str(folder), "--engine", engine]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(outside), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    require_failure(done, 3)
    if engine == "torch":
        assert "outside" in done.stderr


# Configs


@pytest.mark.parametrize("entry", ["num_labels", "num_local_experts", "num_attention_heads"])
def test_counts_of_parts_are_bounded(entry: str, minilm: Path, tmp_path: Path) -> None:
    """The library names labels one by one as it reads a config: their count is looked at before."""
    folder = copy_folder(minilm, tmp_path / "model")
    edit_json(folder / "config.json", lambda config: config.update({entry: 10**8}))
    done = run_bounded("show", "hi", "-m", str(folder), "--engine", "torch", most=10 * GIGABYTE)
    require_failure(done, 3, entry)


def test_models_of_too_many_modules_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as soon as there are too many modules, not when all are there; other models go on."""
    from torch import nn

    from attnviz.models.huggingface import loading

    monkeypatch.setattr(loading, "MOST_MODULES", 10)
    with pytest.raises(ValueError, match="more than 10 modules"), loading.limit_modules():
        nn.ModuleList(nn.Identity() for _ in range(11))
    assert len(nn.ModuleList(nn.Identity() for _ in range(11))) == 11


@pytest.mark.parametrize(
    ("file", "entry", "value"),
    [
        ("tokenizer_config.json", "model_max_length", [1]),
        ("tokenizer_config.json", "fast_tokenizer_files", 7),
        ("config.json", "transformers_weights", {"a": 1}),
    ],
)
def test_entries_of_another_type_are_one_line(
    file: str, entry: str, value: Any, tiny: Tiny, tmp_path: Path
) -> None:
    """What the fuzzer found: the library compares or opens them without a look at their type."""
    folder = copy_folder(tiny("llama"), tmp_path / "model")
    edit_json(folder / file, lambda document: document.update({entry: value}))
    with pytest.raises(ModelError, match=r"model_max_length|names a file|cannot be"):
        load_model(str(folder), placement=TORCH)


# Chat templates

HOSTILE_TEMPLATES = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "8 seconds",
    "{{ 'x' * 10000000000 }}": "1 GB",
    "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}": "1 GB",
    "{{ '%1000000000d' | format(1) }}{{ '%1000000000d' | format(1) }}": "1 GB",
    "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}": "writes more than",
    "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}": "recursion",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "recursion",
    "{{ messages[0].content.__class__.__mro__ }}": "unsafe",
}


@pytest.mark.parametrize(("template", "told"), list(HOSTILE_TEMPLATES.items()))
def test_templates_are_bounded(template: str, told: str) -> None:
    """A program that loops, multiplies texts or overflows the stack ends in a process of its own."""
    tokenizer = SimpleNamespace(chat_template=template, special_tokens_map={})
    with pytest.raises(ChatTemplateError, match=told):
        write_chat_apart(tokenizer, CHAT)


def test_templates_that_end_are_written() -> None:
    """Long chats are no fault, and a template may read the special tokens and write all twice."""
    template = "{{ bos_token }}{% for m in messages * 2 %}{{ m.content }}\n{% endfor %}"
    tokenizer = SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>"})
    content = "word " * 400_000
    written = write_chat_apart(tokenizer, [{"role": "user", "content": content}])
    assert written.text == f"<s>{content}\n{content}\n"
    assert written.ends == (len(written.text),)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_a_hostile_template_is_one_line(engine: str, tiny: Tiny, tmp_path: Path) -> None:
    """On both engines; nothing is left behind."""
    folder = copy_folder(tiny("chat"), tmp_path / "model")
    for file in folder.glob("*.jinja"):
        file.unlink()
    template = "{{ 'x' * 10000000000 }}"
    edit_json(folder / "tokenizer_config.json", lambda it: it.update(chat_template=template))
    before = sorted(tmp_path.rglob("*"))
    arguments = ["show", "--chat", "hi", "-m", str(folder), "--engine", engine]
    done = run_bounded(*arguments, most=10 * GIGABYTE)
    require_failure(done, 4, "the template of", "1 GB")
    assert sorted(tmp_path.rglob("*")) == before


# Tokenizers


def split_by(pattern: str) -> Change:
    """Return a change that lets a tokenizer split texts by a regular expression."""
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda document: document.update(pre_tokenizer=step)


def surround_by(piece: dict[str, Any]) -> Change:
    """Return a change that lets a tokenizer put a piece around each text."""
    step = {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}}
    return lambda document: document.update(post_processor=step)


def replace_by_table(table: str) -> Change:
    """Return a change that lets a tokenizer replace signs by a table of SentencePiece."""
    step = {"type": "Precompiled", "precompiled_charsmap": table}
    return lambda document: document.update(normalizer=step)


def double_letters(count: int) -> Change:
    """Return a change that lets a tokenizer double a letter several times."""
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    sequence = {"type": "Sequence", "normalizers": [step] * count}
    return lambda document: document.update(normalizer=sequence)


def pad_to(count: int) -> Change:
    """Return a change that lets a tokenizer fill texts up to a length."""
    padding = {
        "strategy": {"Fixed": count},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<bos>",
    }
    return lambda document: document.update(padding=padding)


HOSTILE_TOKENIZERS: dict[str, tuple[Change, str]] = {
    "slow pattern": (split_by("(a+)+$"), "retry-limit"),
    "missing token": (surround_by({"SpecialToken": {"id": "Q", "type_id": 0}}), "no entry"),
    "missing text": (surround_by({"Sequence": {"id": "B", "type_id": 0}}), "out of bounds"),
    "empty table": (replace_by_table("AAAAAA=="), "out of bounds"),
    "long table": (replace_by_table("/////w=="), "cut short"),
    "growth": (double_letters(40), "1,024 characters of one"),
    "unknown words": (
        lambda it: it.update(model={"type": "WordLevel", "vocab": {"b": 1}, "unk_token": "c"}),
        "[UNK]",
    ),
    "other vocabulary": (
        lambda it: it.update(model={"type": "WordLevel", "vocab": {"b": 99999}, "unk_token": "b"}),
        "99999",
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE_TOKENIZERS))
def test_hostile_tokenizers_are_one_line(name: str, tmp_path: Path) -> None:
    """What makes the library in Rust give up, or end the process, is one line of ours alone."""
    change, told = HOSTILE_TOKENIZERS[name]
    folder = copy_folder(store.BUILTIN, tmp_path / "model")
    edit_json(folder / "tokenizer.json", change)
    done = run_bounded("show", "a" * 40 + "b", "-m", str(folder))
    require_failure(done, 3, told)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_panics_are_one_line_on_both_engines(engine: str, tiny: Tiny, tmp_path: Path) -> None:
    """A tokenizer.json that the library panics of, as it is read or as it encodes."""
    folder = copy_folder(tiny("llama"), tmp_path / "model")
    edit_json(folder / "tokenizer.json", split_by("(a+)+$"))
    arguments = ["show", "a" * 40 + "b", "-m", str(folder), "--engine", engine]
    done = run_bounded(*arguments, most=10 * GIGABYTE)
    require_failure(done, 3, "cannot read this text" if engine == "torch" else "")


def test_padding_is_not_asked_for(tmp_path: Path) -> None:
    """A tokenizer that fills each text up to a billion tokens fills none."""
    folder = copy_folder(store.BUILTIN, tmp_path / "model")
    edit_json(folder / "tokenizer.json", pad_to(10**9))
    assert run_bounded("show", "hi", "-m", str(folder)).returncode == 0


def test_stderr_is_held_and_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """What other libraries write meanwhile comes afterwards; a report of a panic does not."""
    with hold_stderr():
        os.write(2, b"from a library")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "from a library"
    with hold_stderr() as held:
        os.write(2, b"a report")
        held.truncate(0)
    assert capfd.readouterr().err.strip("\0") == ""


@pytest.mark.parametrize(
    ("file", "entry", "count"),
    [
        ("tokenizer.json", "added_tokens", MOST_ADDED),
        ("tokenizer_config.json", "added_tokens_decoder", MOST_ADDED),
        ("tokenizer_config.json", "additional_special_tokens", MOST_EXTRA),
        ("special_tokens_map.json", "extra_special_tokens", MOST_EXTRA),
        ("added_tokens.json", "it", MOST_ADDED),
    ],
)
def test_added_tokens_are_counted(file: str, entry: str, count: int, tmp_path: Path) -> None:
    """Wherever files of a tokenizer add tokens: as many as there may be pass, one more does not."""
    tokens: Any = [f"<{number}>" for number in range(count + 1)]
    if file == "added_tokens.json":
        tokens = dict.fromkeys(tokens, 0)
    for excess in (1, 0):
        if not excess:
            tokens.pop() if isinstance(tokens, list) else tokens.popitem()
        document = tokens if entry == "it" else {entry: tokens}
        (tmp_path / file).write_text(json.dumps(document))
        if excess:
            with pytest.raises(ModelError, match=f"{count + 1:,} tokens"):
                require_bounded_tokenizer(tmp_path)
        else:
            require_bounded_tokenizer(tmp_path)


# Captures


def test_statistics_of_a_large_head_take_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head is measured in blocks of rows: the same numbers, and copies of one block at a time."""
    random = np.random.default_rng(0)
    weights = random.random((1, 1, 1024, 1024)).astype(np.float32)
    visible = np.tri(1024, dtype=bool)
    weights *= visible
    whole = measure_statistics(weights, visible, square=True)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", 1 << 16)
    tracemalloc.start()
    blocks = measure_statistics(weights, visible, square=True)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * weights.nbytes
    for name in ("entropy", "received", "sink", "distance", "diagonal", "previous"):
        expected = getattr(whole, name)
        np.testing.assert_allclose(getattr(blocks, name), expected, rtol=1e-5)


def test_a_matrix_is_written_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, a number takes 128 bytes until it is written: only those of a block do at a time."""
    matrix = np.linspace(0, 1, 512 * 512, dtype=np.float32).reshape(512, 512)
    visible = np.tri(512, dtype=bool)
    whole = format_matrix_json(matrix, visible)
    monkeypatch.setattr(statistics, "BLOCK_CELLS", 1 << 12)
    tracemalloc.start()
    blocks = format_matrix_json(matrix, visible)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert blocks == whole
    assert peak < 64 * matrix.size


def test_statistics_near_the_limit_of_float32_are_refused(tmp_path: Path) -> None:
    """Their mean over heads would be infinite; what is infinite in memory is null in JSON."""
    weights = np.full((1, 2, 3, 3), 1 / 3, np.float32)
    attention_map = make_map(weights, measured=True)
    assert attention_map.statistics is not None
    attention_map.statistics.entropy[0] = 3.4e38
    capture = make_capture(weights)
    capture = capture.__class__(capture.model, capture.text, (attention_map,))
    save(capture, tmp_path / "x.attn")
    with pytest.raises(InputError, match="that is no attention"):
        load(tmp_path / "x.attn")
    attention_map.statistics.entropy[0] = np.inf
    object.__setattr__(attention_map, "weights", None)
    assert "Infinity" not in format_json(capture)


def test_a_head_that_cannot_be_measured_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may hold a head that takes many times its size to be measured."""
    import psutil

    np.savez_compressed(tmp_path / "x.npz", weights=np.zeros((512, 512), np.float32))
    free = SimpleNamespace(available=32 * 512 * 512)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(InputError, match="of memory, more than half"):
        load(tmp_path / "x.npz")
