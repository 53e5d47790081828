"""Model folders whose configs, tokenizers, templates and weights are damaged, or ask for too much."""

import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

from attnviz.lm import store
from tests.fuzz.captures import JUNK, damage_bytes, list_places
from tests.tiny import make

NAMES = "llama", "gpt2", "chat"
ENTRIES = (
    "num_labels", "num_hidden_layers", "n_layer", "hidden_size", "head_dim", "vocab_size", "auto_map",
    "num_attention_heads", "max_position_embeddings", "rope_parameters", "model_type", "sliding_window",
    "transformers_weights", "fast_tokenizer_files", "model_max_length", "chat_template", "_name_or_path",
)  # fmt: skip
HUGE: tuple[Any, ...] = (
    10**8,
    -(10**8),
    10**30,
    0,
    1e308,
    "../other",
    ["../x/tokenizer.4.0.0.json"],
)
COMPONENTS: dict[str, tuple[Any, ...]] = {
    "normalizer": (
        {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000},
        {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aa"}] * 30},
    ),
    "pre_tokenizer": (
        {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "FixedLength", "length": 0},
    ),
    "post_processor": (
        {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "Q", "type_id": 0}}], "pair": [], "special_tokens": {}},
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "B", "type_id": 0}}], "pair": [], "special_tokens": {}},
    ),
    "padding": (
        {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    ),
    "model": (
        {"type": "WordLevel", "vocab": {"a": 99999}, "unk_token": "a"},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": None},
    ),
}  # fmt: skip
TEMPLATES = (
    "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "{{ 'x' * 10000000000 }}",
    "{{ messages[0]['content'] }}\x1b[31m\u202e",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "[" * 5000,
)


@cache
def make_source(name: str) -> Path:
    """Make the folder of a sound model once, from which others are made."""
    if name == "builtin":
        return store.BUILTIN
    folder = Path(mkdtemp(prefix="fuzz-"))
    return make(name, folder / name)


def change_json(random: Random, path: Path) -> None:
    """Change some values of a JSON file, entries that ask for much above all."""
    document = json.loads(path.read_bytes())
    for _ in range(random.randint(1, 3)):
        if isinstance(document, dict) and random.random() < 0.5:
            document[random.choice(ENTRIES)] = random.choice((*HUGE, *JUNK))
        else:
            node, key = random.choice(list_places(document))
            node[key] = random.choice((*HUGE, *JUNK))
    path.write_text(json.dumps(document))


def change_config(random: Random, folder: Path) -> None:
    """Change values of the config."""
    change_json(random, folder / "config.json")


def change_settings(random: Random, folder: Path) -> None:
    """Change values of the settings of the tokenizer, if it has any."""
    path = folder / "tokenizer_config.json"
    change_json(random, path if path.exists() else folder / "config.json")


def change_tokenizer(random: Random, folder: Path) -> None:
    """Give the tokenizer a component that makes its library give up, or asks for too much."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_bytes())
    name = random.choice(list(COMPONENTS))
    document[name] = random.choice((*COMPONENTS[name], *JUNK))
    path.write_text(json.dumps(document))


def change_template(random: Random, folder: Path) -> None:
    """Give the tokenizer a chat template that is no chat."""
    (folder / "chat_template.jinja").write_text(random.choice(TEMPLATES))


def change_bytes(random: Random, folder: Path) -> None:
    """Damage some bytes of a file."""
    path = random.choice([file for file in sorted(folder.iterdir()) if file.is_file()])
    path.write_bytes(damage_bytes(random, path.read_bytes()))


def change_file(random: Random, folder: Path) -> None:
    """Put a pipe, a device, an endless link, a folder or nothing in place of a file."""
    path = random.choice([file for file in sorted(folder.iterdir()) if file.is_file()])
    path.unlink()
    kind = random.randrange(6)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to("/dev/zero")
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        path.touch()
        os.truncate(path, 1 << 30)


def change_index(random: Random, folder: Path) -> None:
    """Let an index name the files of the weights."""
    index = {"metadata": {}, "weight_map": {"a": random.choice(("../x.safetensors", 1, "..", "x"))}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "part.safetensors")


CHANGES: tuple[Callable[[Random, Path], None], ...] = (
    change_config, change_config, change_settings, change_tokenizer, change_template, change_bytes,
    change_file, change_index,
)  # fmt: skip


def make_folder_case(random: Random, folder: Path) -> list[str]:
    """Write a model folder, and return the arguments of a command that runs the model."""
    name = random.choice((*NAMES, "builtin"))
    target = folder / "model"
    shutil.copytree(make_source(name), target, ignore=shutil.ignore_patterns("__pycache__"))
    random.choice(CHANGES)(random, target)
    engine = ["--engine", random.choice(("auto", "numpy", "torch"))]
    command = random.choice((["show"], ["inspect", "--json"], ["show", "--chat"]))
    if name == "builtin":
        engine = []
    text = random.choice(("The cat sat.", "a" * 40 + "b"))
    return [*command, text, "-m", str(target), *engine]
