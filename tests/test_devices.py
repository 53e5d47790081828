"""Every path that handles a device: on a pretend one, which raises where tensors of two devices meet, and on CUDA.

| path | what runs on it | models |
|---|---|---|
| capture of a transformers model | all heads, chosen heads, windows, tiles, statistics, edges | 140 architectures |
| other numbers | norms, scores, gradients, Chefer's relevance, rollout | Llama, BART, GPT-2 |
| interventions | knock-outs, ablation by zeros and by means, replaced tokens | Llama, BART, GPT-2, GPT-Neo |
| generation | steps with cached keys, an encoder-decoder that writes its target | Llama, GPT-2, GPT-Neo, BART |
| experiments | roles of heads, losses, attribution, explanation, comparison | Llama |
| modules | nn.MultiheadAttention, nn.Transformer, the layer of attnviz, a softmax | five modules |
| the built-in model | all of these, on torch tensors in place of NumPy arrays | builtin |
| training | both optimizers | a small model |

The numbers equal those of the CPU. The pretend device cannot tell whether a kernel of a real one is right, fast or
precise. Where there is a GPU, the same tests run on it too.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import attnviz
from attnviz.engine.reducers import MaskSummary
from attnviz.errors import ModelError
from attnviz.layer import MultiHeadAttention
from attnviz.lm.train import Recipe, train_parameters
from attnviz.models.huggingface.attention import AttentionReader
from attnviz.request import Request
from tests.architectures import SWEPT, Architecture
from tests.conftest import ROOT, SENTENCE, Run, Tiny
from tests.pretend_device import NAME, DeviceMixError, pretend_device
from tests.tiny import TINY_CONFIG

DEVICES = [NAME, *[pytest.param("cuda", marks=pytest.mark.cuda)] * torch.cuda.is_available()]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device, which ``--device`` takes."""
    if request.param != NAME:
        yield request.param
        return
    for module in ("builtin", "huggingface.loading"):
        monkeypatch.setattr(f"attnviz.models.{module}.find_torch_device", lambda name, *_: name)
    with pretend_device():
        yield NAME


def test_mixed_devices_raise() -> None:
    """The pretend device notices what a GPU would: an operand, an index or a mask on the CPU, and a way to NumPy."""
    with pretend_device():
        x = torch.ones(2, 3, device="pretend")
        assert (x.device.type, (x @ x.mT).device.type, x.cpu().device.type) == (
            "pretend",
            "pretend",
            "cpu",
        )
        assert (x * 2.0 + torch.tensor(1.0)).tolist() == [[3.0] * 3] * 2
        for mix in (
            lambda: x @ torch.ones(3, 2),
            lambda: x + torch.ones(3),
            lambda: x.where(torch.ones(3, dtype=torch.bool), 0),
            lambda: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
            lambda: torch.cat([x, torch.ones(1, 3)]),
        ):
            with pytest.raises(DeviceMixError, match="on the CPU"):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            np.asarray(x)


def test_a_planted_mistake_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the engine that forgets the device fails here, as it would on a GPU."""
    summarise = MaskSummary.from_causal_mask
    monkeypatch.setattr(
        MaskSummary, "from_causal_mask", lambda n, m, device: summarise(n, m, torch.device("cpu"))
    )
    with pretend_device():
        x = torch.randn(1, 7, 16).to("pretend")
        with pytest.raises(ModelError, match="DeviceMixError"):
            attnviz.capture(model=Fused(), inputs=x, keep="statistics")


# Models of the library


def weights_of(model: nn.Module, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    """The weights of all heads, by the number of the call."""
    reading = AttentionReader(model)
    surveyed = reading.survey(inputs)
    heads = {number: tuple(range(site.heads)) for number, site in enumerate(surveyed.sites)}
    found, _ = reading.read_calls(surveyed, inputs, heads, Request())
    return {number: one.weights for number, one in found.items()}


@pytest.mark.parametrize("architecture", SWEPT)
@pytest.mark.slow
def test_captures_of_all_architectures(architecture: Architecture, device: str) -> None:
    """Weights of every head of every architecture, with padding where it has any, equal those of the CPU."""
    model = architecture.build()
    inputs = architecture.inputs(architecture.pads[0] if architecture.pads else None)
    expected = weights_of(model, inputs)
    model.to(device)
    found = weights_of(model, {name: part.to(device) for name, part in inputs.items()})
    assert found.keys() == expected.keys()
    for number, weights in found.items():
        torch.testing.assert_close(weights, expected[number], rtol=1e-4, atol=1e-5)


ALL = ["-l", "all", "-H", "all"]
CUT, ABLATED = ["--knock-out", "sat->cat"], ["--ablate", "L0H1"]
TARGET = ["--target", "ein Text"]
FEW = ["--sequences", "2", "--block", "5", "--corpus", "corpus.txt"]
QUESTIONS: dict[str, list[list[str]]] = {
    "llama": [
        ["show", SENTENCE, *ALL],
        ["show", SENTENCE, "-H", "L1H2"],
        ["show", SENTENCE, "--rows", "2:5", "--cols", "1:4"],
        *[
            ["show", SENTENCE, "--weights", kind]
            for kind in ("norm", "scores", "gradient", "chefer", "rollout")
        ],
        ["show", SENTENCE, "--weights", "norm", "--reduce", "sum"],
        ["show", SENTENCE, "--generate", "3"],
        ["show", SENTENCE, *CUT],
        ["show", SENTENCE, *ABLATED],
        ["inspect", SENTENCE],
        ["explain", SENTENCE, "-H", "L1H2", "--query", "4"],
        ["attribute", SENTENCE, "--verify", "--leave-one-out"],
        ["heads", *FEW],
        ["compare", SENTENCE, "--with", "The dog sat on the mat."],
    ],
    "bart": [
        *[["show", SENTENCE, "--map", kind, *TARGET] for kind in ("encoder", "cross")],
        ["show", SENTENCE],
        ["show", SENTENCE, "--map", "encoder", *CUT, *TARGET],
    ],
    "gpt2": [["show", SENTENCE, "--generate", "2"], ["show", SENTENCE, *ABLATED]],
    "gpt_neo": [["show", SENTENCE, "--generate", "2"], ["show", SENTENCE, *CUT]],
    "builtin": [
        ["show", SENTENCE, *ALL],
        *[
            ["show", SENTENCE, "--weights", kind]
            for kind in ("norm", "scores", "gradient", "rollout")
        ],
        ["show", SENTENCE, "--generate", "3"],
        ["show", SENTENCE, *CUT],
        ["show", SENTENCE, *ABLATED],
        ["explain", SENTENCE, "-H", "L1H2", "--query", "4"],
        ["attribute", SENTENCE, "--verify"],
        ["heads", "--ablate", "-H", "L1H3", *FEW],
    ],
}
AGAIN: dict[str, list[list[str]]] = {  # what another model is asked in all runs
    "bart": [
        ["show", SENTENCE, "--map", "decoder", *TARGET],
        *[["show", SENTENCE, "--weights", kind, *TARGET] for kind in ("norm", "gradient")],
        ["show", SENTENCE, "--map", "encoder", *ABLATED, *TARGET],
    ],
    "gpt2": [
        ["show", SENTENCE, *ALL],
        *[["show", SENTENCE, "--weights", kind] for kind in ("norm", "gradient")],
    ],
    "gpt_neo": [["show", SENTENCE, *ALL]],
}
QUICK = {"builtin": 100, "gpt2": 2, "bart": 1}  # so many questions to each are in every run


def case(name: str, number: int, question: list[str], marks: Sequence[Any]) -> Any:
    """Return a question to a model as a case of a test; all but the first few are slow."""
    slow = [] if number < QUICK.get(name, 1) else [pytest.mark.slow]
    return pytest.param(name, question, id=" ".join([name, *question]), marks=[*marks, *slow])


CASES = [
    case(name, number, question, marks)
    for asked, marks in ((QUESTIONS, ()), (AGAIN, [pytest.mark.sweep]))
    for name, questions in asked.items()
    for number, question in enumerate(questions)
]


@pytest.mark.parametrize(("name", "question"), CASES)
def test_commands_equal_the_cpu(
    name: str, question: list[str], device: str, call: Run, tiny: Tiny, tmp_path: Path
) -> None:
    """The documents that commands print for a model on a device and on the CPU hold the same."""
    (tmp_path / "corpus.txt").write_text(
        "\n\n".join([SENTENCE, "The old woman opened the window."])
    )
    model = "builtin" if name == "builtin" else tiny(name)
    torch = () if name == "builtin" else ("--engine", "torch")
    documents = []
    for place in ("cpu", device):
        done = call(*question, "-m", model, *torch, "--device", place, "--json")
        assert done.returncode == 0, done.stderr
        documents.append(json.loads(done.stdout))
    require_close(documents[1], documents[0])


MEASURED = (
    "fidelity",
    "output_change",
    "largest_difference",
)  # how large the rounding was, which differs


def require_close(found: Any, expected: Any, where: str = "") -> None:
    """The same document, but for the rounding of numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected:
            if name not in MEASURED:
                require_close(found[name], expected[name], f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, (one, other) in enumerate(zip(found, expected, strict=True)):
            require_close(one, other, f"{where}[{place}]")
    elif isinstance(expected, float) and isinstance(found, float):
        assert math.isclose(found, expected, rel_tol=1e-3, abs_tol=1e-4), (
            f"{where}: {found} {expected}"
        )
    else:
        assert found == expected, where


@pytest.mark.parametrize("keep", ["tiles", "statistics", "edges"])
def test_what_else_is_kept(keep: str, device: str, call: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Tiles, statistics and edges are saved from a device as from the CPU."""
    found = []
    for place in ("cpu", device):
        path = tmp_path / f"{place}.json"
        done = call(
            "capture",
            SENTENCE,
            "-m",
            tiny("llama"),
            "--engine",
            "torch",
            "--device",
            place,
            "--keep",
            keep,
            "-o",
            path,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(path.read_text()))
    require_close(found[1], found[0])


# Modules


class Causal(nn.Module):
    """Our layer, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(16, 4, causal=True)

    def forward(self, x: Tensor) -> Tensor:
        """(1, time, dim) to the same."""
        return self.attention(x)


class MultiHead(nn.Module):
    """torch's own layer between two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """(1, time, dim) to the same."""
        return self.attention(x, x[:, :3], x[:, :3])[0]


class Fused(nn.Module):
    """scaled_dot_product_attention, called by hand."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, time, dim) to the same."""
        heads = x.unflatten(-1, (4, 4)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        return mixed.transpose(1, 2).flatten(2)


class Softmax(nn.Module):
    """A softmax written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        """(1, time, dim) to the same."""
        return (x @ x.mT / 4).softmax(-1) @ x


def encoder() -> nn.Module:
    """Two layers of nn.TransformerEncoder."""
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)


@pytest.mark.parametrize("make", [Causal, MultiHead, Fused, Softmax, encoder])
@pytest.mark.parametrize("keep", ["weights", "statistics"])
def test_modules(make: Any, keep: Any, device: str) -> None:
    """Modules of one's own give the same on a device."""
    torch.manual_seed(0)
    net = make().eval()
    x = torch.randn(1, 7, 16)
    expected = attnviz.capture(model=net, inputs=x, keep=keep)
    found = attnviz.capture(model=net.to(device), inputs=x.to(device), keep=keep)
    for one, other in zip(found.maps, expected.maps, strict=True):
        if keep == "weights":
            np.testing.assert_allclose(one.weights, other.weights, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            one.statistics.entropy, other.statistics.entropy, rtol=1e-4, atol=1e-5
        )


def test_training(device: str) -> None:
    """The same steps lead to the same parameters."""
    ids = np.tile(np.arange(1, 40), 10)
    recipe = Recipe(steps=4, tokens=96, length=24, rate=0.02, warm_up=2)
    expected = train_parameters(ids, TINY_CONFIG, recipe, watch=lambda _: None)
    found = train_parameters(ids, TINY_CONFIG, recipe, device=device, watch=lambda _: None)
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name].cpu(), parameter, rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which the check would take")
@pytest.mark.slow
def test_the_check_on_a_gpu_says_that_there_is_none() -> None:
    """scripts/check_cuda.sh ends with one line and the exit code of a device that is not there."""
    done = subprocess.run(
        ["bash", "scripts/check_cuda.sh"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "no CUDA device is here: nothing was checked\n",
    )
