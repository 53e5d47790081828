"""Checkpoints in NumPy: as exact as torch, for every family and switch, and taken only if certain."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModel

from attnviz.errors import ModelError
from attnviz.lm.activations import ACTIVATIONS, compute_erf
from attnviz.lm.transformer import run_transformer
from attnviz.models.numpy.checkpoint import Checkpoint, open_checkpoint
from attnviz.models.numpy.config import UnsuitableError
from attnviz.record import Doubles, Floats
from tests.checkpoints import GROUPED, LONGEST, VOCABULARY, RandomCheckpoint, list_checkpoints

pytestmark = pytest.mark.numeric
CHECKPOINTS = list_checkpoints()
LLAMA = RandomCheckpoint("llama", GROUPED)
TEXTS = 4
ROUNDING = 3e-7  # by which numbers may differ whatever torch's own error is
HALF_A_UNIT = 6e-8  # in the last place of a weight of 1
APART = 1e-5  # at most, between two ways to compute in float32


def draw_ids(length: int) -> np.ndarray:
    """Draw token ids of several texts, (text, n), none of them special."""
    return np.random.default_rng(length).integers(5, VOCABULARY, (TEXTS, length))


def run_torch(folder: Path, ids: np.ndarray, dtype: torch.dtype) -> list[Doubles]:
    """Return the eager weights of each layer, (text, head, query, key), computed in a type."""
    model = AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        outputs = model(torch.from_numpy(ids), output_attentions=True, use_cache=False)
    return [layer.double().numpy() for layer in outputs.attentions]


def run_numpy(checkpoint: Checkpoint, ids: np.ndarray) -> list[Floats]:
    """Return our weights of each layer, (text, head, query, key)."""
    runs = run_transformer(checkpoint, checkpoint.architecture, ids)
    return [run.attended.weights for run in runs]


def find_largest_difference(some: Any, others: Any) -> float:
    """Return the largest difference between the weights of layers."""
    return max(float(np.abs(a - b).max()) for a, b in zip(some, others, strict=True))


def measure_mean_difference(some: Any, others: Any) -> float:
    """Return the root of the mean square of the differences between the weights of layers.

    The largest difference, of one weight in a thousand, is twice torch's or half of it by chance.
    """
    differences = [a - b for a, b in zip(some, others, strict=True)]
    return float(np.sqrt(np.mean(np.square(differences))))


def require_exact(folder: Path, length: int) -> None:
    """Raise unless NumPy's weights are as near to those in float64 as torch's own."""
    ids = draw_ids(length)
    ours = run_numpy(open_checkpoint(folder), ids)
    single = run_torch(folder, ids, torch.float32)
    double = run_torch(folder, ids, torch.float64)
    torchs_error = measure_mean_difference(single, double)
    our_error = measure_mean_difference(ours, double)
    assert our_error <= 1.5 * torchs_error + HALF_A_UNIT
    assert find_largest_difference(ours, single) <= APART


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[RandomCheckpoint], Path]:
    """Return the folder of a random checkpoint, made when it is first asked for."""
    folders: dict[str, Path] = {}

    def folder_of(checkpoint: RandomCheckpoint) -> Path:
        name = str(checkpoint)
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp("checkpoint")
            checkpoint.save(folders[name])
        return folders[name]

    return folder_of


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=str)
def test_weights_are_as_exact_as_torchs(
    checkpoint: RandomCheckpoint, folder_of: Callable[[RandomCheckpoint], Path]
) -> None:
    """Of every family, with each of its switches."""
    require_exact(folder_of(checkpoint), 21)


@pytest.mark.sweep
@pytest.mark.parametrize("length", [1, 2, 100, LONGEST - 20])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=str)
def test_weights_are_exact_at_every_length(
    checkpoint: RandomCheckpoint, length: int, folder_of: Callable[[RandomCheckpoint], Path]
) -> None:
    """From one token to as many as windows, scalings of positions and tables have."""
    require_exact(folder_of(checkpoint), length)


class TensorSource:
    """The parameters of a checkpoint as tensors of torch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.embedded: list[torch.Tensor] = []

    def read_layer(self, layer: int) -> dict[str, torch.Tensor]:
        """Read the parameters of one layer."""
        arrays = self.checkpoint.read_layer(layer)
        return {name: torch.tensor(array) for name, array in arrays.items()}

    def embed(self, ids: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
        """Embed token ids as the beginning of a graph."""
        assert segments is None
        self.embedded.append(torch.tensor(self.checkpoint.embed(ids.numpy())).requires_grad_())
        return self.embedded[0]


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=str)
def test_torch_runs_the_same_layers(
    checkpoint: RandomCheckpoint, folder_of: Callable[[RandomCheckpoint], Path]
) -> None:
    """On tensors weights are those of NumPy, and gradients go through all layers."""
    opened = open_checkpoint(folder_of(checkpoint))
    ids = draw_ids(21)
    source = TensorSource(opened)
    runs = list(run_transformer(source, opened.architecture, torch.from_numpy(ids)))
    weights = [run.attended.weights.detach().numpy() for run in runs]
    assert find_largest_difference(weights, run_numpy(opened, ids)) <= APART
    (slope,) = torch.autograd.grad(runs[-1].hidden.square().sum(), source.embedded)
    assert slope.isfinite().all()
    assert slope.any(-1).all()


def test_weights_of_real_parameters_are_exact(minilm: Path) -> None:
    """Those of all-MiniLM-L6-v2."""
    require_exact(minilm, 40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_read_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every number of bfloat16 and float16 is one of float32, so nothing is lost."""
    LLAMA.save(tmp_path, dtype=dtype)
    require_exact(tmp_path, 17)


def test_weights_may_lie_in_several_files(tmp_path: Path) -> None:
    """An index names them."""
    LLAMA.save(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    require_exact(tmp_path, 17)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu", "relu", "silu"])
def test_activations_are_those_of_the_library(name: str) -> None:
    """As near to float64 as torch's own."""
    from transformers.activations import ACT2FN

    x = np.linspace(-12, 12, 20_001, dtype=np.float32)
    double = ACT2FN[name](torch.from_numpy(x).double()).numpy()
    single = ACT2FN[name](torch.from_numpy(x)).numpy()
    error = np.abs(ACTIVATIONS[name](x) - double).max()
    assert error <= 1.5 * np.abs(single - double).max() + ROUNDING


def test_the_error_function_is_that_of_python() -> None:
    """To 1e-9, on both sides and beyond the table."""
    import math

    x = np.linspace(-9, 9, 5001)
    assert np.abs(compute_erf(x) - [math.erf(number) for number in x]).max() < 1e-9


# What is not taken


def change_config(folder: Path, **entries: Any) -> None:
    """Change entries of a config; None takes one away."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for name, value in entries.items():
        if value is None:
            values.pop(name, None)
        else:
            values[name] = value
    path.write_text(json.dumps(values))


@pytest.fixture
def llama(folder_of: Callable[[RandomCheckpoint], Path], tmp_path: Path) -> Path:
    """A copy of a small Llama, to change."""
    return Path(shutil.copytree(folder_of(LLAMA), tmp_path / "llama"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"attention_temperature": 2.0}, "attention_temperature"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"hidden_act": "mish"}, "mish"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_parameters": {"rope_type": "default", "twist": 2.0}}, "twist"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_attention_heads": 5}, "heads"),
        ({"num_key_value_heads": 3}, "heads"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder"),
        ({"attention_bias": True}, "bias"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps"),
        ({"head_dim": 10**9}, "rotates"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.0}}, "factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 1e-320}}, "scaled"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
        ({"intermediate_size": 97}, "97"),
        ({"num_hidden_layers": 2}, "layers.2"),
        ({"num_hidden_layers": 4}, "layers.3"),
    ],
    ids=str,
)
@pytest.mark.exact
def test_what_is_not_known_is_not_taken(llama: Path, entries: dict[str, Any], reason: str) -> None:
    """An entry of a config, or a value, that nobody looked at may change the picture."""
    change_config(llama, **entries)
    with pytest.raises(UnsuitableError, match=reason):
        open_checkpoint(llama)


@pytest.mark.exact
def test_a_weight_that_is_not_accounted_for_is_not_taken(llama: Path) -> None:
    """One more, one less, and one of another shape."""
    path = llama / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "layers.0.self_attn.q_norm.weight": np.ones(16, np.float32)}, path)
    with pytest.raises(UnsuitableError, match="q_norm"):
        open_checkpoint(llama)
    less = {name: tensor for name, tensor in tensors.items() if not name.endswith("q_proj.weight")}
    save_file(less, path)
    with pytest.raises(UnsuitableError, match="lack"):
        open_checkpoint(llama)
    save_file({**tensors, "norm.weight": np.ones(3, np.float32)}, path)
    with pytest.raises(UnsuitableError, match=r"norm.weight"):
        open_checkpoint(llama)


@pytest.mark.exact
def test_heads_and_buffers_are_left_out(llama: Path) -> None:
    """What predicts, and what older versions of the library saved, has no bearing on attention."""
    path = llama / "model.safetensors"
    tensors = {f"model.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["lm_head.weight"] = np.ones((VOCABULARY, 64), np.float32)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    save_file(tensors, path)
    assert open_checkpoint(llama).architecture.layers == 3


@pytest.mark.exact
@pytest.mark.parametrize(
    "damage", ["cut", "header", "length", "overlap", "none", "index", "number", "fewer", "escape"]
)
def test_damaged_files_are_one_error(llama: Path, damage: str) -> None:
    """Of one line, and nothing is read beyond the file or outside the folder."""
    path = llama / "model.safetensors"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "header":
        path.write_bytes(data[:8] + b"[" + data[9:])
    elif damage == "length":
        path.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    elif damage == "overlap":
        path.write_bytes(data.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1))
    elif damage == "fewer":
        path.rename(llama / "part.safetensors")
    else:
        path.unlink()
    index = llama / "model.safetensors.index.json"
    if damage == "index":
        index.write_text('{"weight_map": 3}')
    if damage == "number":
        index.write_text('{"weight_map": {"norm.weight": 3}}')
    if damage == "fewer":
        index.write_text('{"weight_map": {"norm.weight": "part.safetensors"}}')
    if damage == "escape":
        index.write_text('{"weight_map": {"norm.weight": "../llama/model.safetensors"}}')
    with pytest.raises(ModelError) as raised:
        open_checkpoint(llama)
    assert "\n" not in str(raised.value)
