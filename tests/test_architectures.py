"""Every architecture of ``tests.architectures``, small and random: the library's own eager attention as the oracle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from attnviz.engine.call import Call
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import AttentionSite, CallResult, CallSource
from attnviz.engine.observers.capture import NO_EDITS
from attnviz.engine.observers.change import ChangeObserver
from attnviz.engine.values import WatchedOutput
from attnviz.errors import ModelError
from attnviz.experiments.ablation import make_ablation
from attnviz.models.huggingface.attention import AttentionReader
from attnviz.request import Request
from scripts.architectures import BEGIN, END, PAGE, table
from tests.architectures import (
    ARCHITECTURES,
    AVAILABLE,
    MECHANISMS,
    SWEPT,
    Architecture,
    choose_marks,
    eager,
    set_eager,
)
from tests.tolerance import close

pytestmark = pytest.mark.numeric

WIDTH = 64  # of the longest sum of a layer
HALF = "BERT", "Llama", "T5", "Gemma 2", "DeBERTa"
UNCUT = {"BigBird (sparse)", "Longformer", "LED"}
# They show weights alone; between heads and W_O of BitNet and JetMoE comes more; the layers of ALBERT share one W_O.
UNPROJECTED = {
    "ALBERT",
    "BLOOM",
    "BigBird",
    "BigBird (sparse)",
    "BigBird-Pegasus",
    "BitNet",
    "CodeGen",
    "ConvBERT",
    "DeBERTa",
    "DeBERTa-v2",
    "FlauBERT",
    "GPT",
    "GPT-J",
    "GPT-Neo",
    "JetMoE",
    "LED",
    "LUKE",
    "Longformer",
    "MPNet",
    "MPT",
    "MVP",
    "Megatron-BERT",
    "RemBERT",
    "RoFormer",
    "XGLM",
    "XLM",
    "XLNet",
}
UNMEASURED = {
    "XLNet",
    "Longformer",
    "LED",
    "BigBird (sparse)",
}  # their products with values are of other shapes
QUERIES = {
    "self": "",
    "encoder": "",
    "decoder": "decoder_",
    "cross": "decoder_",
}  # whose the queries are


@pytest.fixture(scope="module", params=SWEPT)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    """One of those that the installed transformers has; the default run has one for each way to compute attention."""
    return request.param


def read(
    reading: AttentionReader, inputs: Mapping[str, Tensor], edits: RunEdits = NO_EDITS
) -> tuple[tuple[AttentionSite, ...], dict[int, CallResult]]:
    """The calls of attention, and all that can be found at all of their heads."""
    surveyed = reading.survey(inputs)
    heads = {number: tuple(range(site.heads)) for number, site in enumerate(surveyed.sites)}
    return surveyed.sites, reading.read_calls(surveyed, inputs, heads, Request(), edits)[0]


@dataclass(frozen=True)
class Read:
    """A model, and what was read of it."""

    model: torch.nn.Module
    sites: tuple[AttentionSite, ...]
    found: dict[int, CallResult]


@pytest.fixture(scope="module")
def whole(architecture: Architecture) -> Read:
    """All that can be found of an architecture without padding, for the tests that change nothing of it."""
    model = architecture.build()
    return Read(model, *read(AttentionReader(model), architecture.inputs(None)))


def by_kind(sites: tuple[AttentionSite, ...]) -> dict[str, list[int]]:
    """The numbers of the calls of each kind."""
    return {
        kind: [n for n, site in enumerate(sites) if site.kind == kind]
        for kind in {site.kind for site in sites}
    }


def readable(model: torch.nn.Module, inputs: Mapping[str, Tensor]) -> AttentionReader:
    """A reading that runs the same code as the oracle, where it reads what the model computes itself.

    Otherwise Falcon's SDPA would be read, which adds ALiBi once; its eager code adds it twice (a bug of the library).
    """
    reading = AttentionReader(model)
    reading.survey(inputs)
    if reading.tapped:
        set_eager(model)
    return reading


@pytest.mark.parametrize("architecture", SWEPT)
def test_weights_equal_eager(architecture: Architecture) -> None:
    """Every weight of every layer and head of every kind, without padding and with it; what is hidden is 0."""
    model = architecture.build()
    reading = readable(model, architecture.inputs(None))
    for padding in (None, *architecture.pads):
        inputs = architecture.inputs(padding)
        expected = eager(model, inputs)
        sites, found = read(reading, inputs)
        numbers = by_kind(sites)
        assert {kind: len(of_kind) for kind, of_kind in numbers.items()} == {
            k: len(e) for k, e in expected.items()
        }
        for kind, of_kind in numbers.items():
            layers = [sites[number].layer for number in of_kind]
            assert layers == sorted(set(layers))
            mask = inputs.get(f"{QUERIES[kind]}attention_mask")
            told = torch.ones(expected[kind].shape[2]) if mask is None else mask[0]
            for number, weights in zip(of_kind, expected[kind], strict=True):
                assert sites[number].heads == len(weights)
                compare(found[number], weights, told.bool(), f"{padding} {kind} {number}")


def compare(found: CallResult, expected: Tensor, told: Tensor, where: str) -> None:
    """Compare weights (head, query, key), but for queries that are padding or see nothing."""
    visible = found.visible.expand(expected.shape)
    rows = visible.any(-1) & told
    assert rows.any(), where
    assert found.weights[~visible].count_nonzero() == 0, where
    torch.testing.assert_close(
        found.weights[rows], expected[rows], **close(WIDTH), msg=lambda m: f"{where}: {m}"
    )


def test_weights_explain_the_output(architecture: Architecture, whole: Read) -> None:
    """Weights times values are what each layer went on with, to 1e-5; in four models this is not looked at."""
    measured = [part.difference for part in whole.found.values() if part.difference is not None]
    assert len(measured) == len(whole.sites) or architecture.name in UNMEASURED
    assert max(measured, default=0) <= 1e-5


def test_an_edge_is_cut(architecture: Architecture, whole: Read) -> None:
    """Its weight is 0, what it had goes to the rest of its row in proportion (and to a sink); other rows stay."""
    model, inputs, sites, found = whole.model, architecture.inputs(None), whole.sites, whole.found
    at, site = next((n, site) for n, site in enumerate(sites) if found[n].visible[-1, -1].sum() > 1)
    before = found[at].weights.double()
    head, query = site.heads - 1, before.shape[1] - 1
    key = int(
        (before[head, query] - 0.3).abs().argmin()
    )  # one that there is much to share of, and not all
    cut = torch.zeros(1, *before.shape, dtype=torch.bool)
    cut[0, head, query, key] = True
    edits = RunEdits([part.layer for part in sites], {at: cut})
    if architecture.name in UNCUT:
        with pytest.raises(ModelError, match=r"sparse|cannot be cut"):
            read(AttentionReader(model), inputs, edits)
        return
    after = read(AttentionReader(model), inputs, edits)[1]
    expected = before / torch.where(cut[0].any(-1, keepdim=True), 1 - before[head, query, key], 1)
    torch.testing.assert_close(
        after[at].weights.double(), expected.masked_fill(cut[0], 0), rtol=0, atol=1e-5
    )
    for number in range(at):
        torch.testing.assert_close(after[number].weights, found[number].weights, **close(WIDTH))
    later = [number for number in range(at + 1, len(sites)) if site.kind == sites[number].kind]
    assert all(
        not torch.equal(after[number].weights, found[number].weights) for number in later[:1]
    )


class Projected(ChangeObserver):
    """Keeps the matrix that the output of each call is multiplied with, and the size of a head in it."""

    def __init__(self) -> None:
        super().__init__(NO_EDITS)
        self.matrices: dict[int, tuple[Tensor, int]] = {}

    def attend(self, call: Call, source: CallSource) -> Tensor:
        """See ``Observer.attend``."""
        number, output = self.calls, super().attend(call, source)
        width = output.shape[-1]
        return WatchedOutput.watch(
            output, lambda _, matrix: self.matrices.setdefault(number, (matrix.detach(), width))
        )


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=choose_marks(name)) for name in AVAILABLE if name not in UNPROJECTED],
)
def test_a_head_is_ablated(name: str) -> None:
    """Zeros in place of its output do what zeros in its columns of W_O do, to 1e-5 of what the model puts out."""
    model, inputs = AVAILABLE[name].build(), AVAILABLE[name].inputs(None)
    reading = AttentionReader(model)
    sites = reading.survey(inputs).sites
    projected = Projected()
    reading.run(inputs, projected)
    at, head = len(sites) - 1, sites[-1].heads - 1
    matrix, width = projected.matrices[at]
    layers = list(range(len(sites)))
    change = make_ablation([(at, head)], "zero", {})
    whole = reading.run(inputs, ChangeObserver(NO_EDITS))[0].last_hidden_state
    found = reading.run(inputs, ChangeObserver(RunEdits(layers, change=change)))[
        0
    ].last_hidden_state
    matrix[head * width : (head + 1) * width] = 0
    expected = reading.run(inputs, ChangeObserver(NO_EDITS))[0].last_hidden_state
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    assert float((found - whole).abs().max()) > 1e-4 * scale


@pytest.mark.exact
def test_the_model_is_left_as_found(architecture: Architecture) -> None:
    """Hooks, modes, attention implementations, attributes and numbers of a model are the same after it was read."""
    model, inputs = architecture.build(), architecture.inputs(None)
    for number, module in enumerate(model.modules()):
        module.training = number % 2 == 0
    model.register_forward_hook(lambda *_: None)
    before, numbers = (
        state(model),
        {name: part.clone() for name, part in model.state_dict().items()},
    )
    read(AttentionReader(model), inputs)
    assert state(model) == before
    assert all(torch.equal(part, numbers[name]) for name, part in model.state_dict().items())


def state(model: torch.nn.Module) -> list[Any]:
    """What the modules of a model and their configs hold: names, plain values, and other things by identity."""
    parts = [
        part
        for module in model.modules()
        for part in (module, getattr(module, "config", None))
        if part
    ]
    return [{name: told(value) for name, value in vars(part).items()} for part in parts]


def told(value: Any) -> Any:
    """A value that a later change of the same object does not change."""
    if isinstance(value, dict):
        return {key: told(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [told(inner) for inner in value]
    return value if isinstance(value, (str, int, float, type(None))) else id(value)


@pytest.mark.exact
def test_a_run_that_fails_leaves_the_model_as_found() -> None:
    """So it is when the model fails in the middle of its run."""
    model, inputs = AVAILABLE["GPT-2"].build(), AVAILABLE["GPT-2"].inputs(None)
    reading, before = AttentionReader(model), state(model)
    reading.survey(inputs)
    with pytest.raises(Exception, match="index out of range"):
        read(reading, {"input_ids": inputs["input_ids"] + 99})
    assert state(model) == before


@pytest.mark.parametrize("name", HALF)
def test_half_precision(name: str) -> None:
    """In bfloat16, rows still sum to 1 within 1e-2, and weights are those of float32 within 0.1."""
    model, inputs = AVAILABLE[name].build(), AVAILABLE[name].inputs(None)
    _, exact = read(AttentionReader(model), inputs)
    _, found = read(AttentionReader(model.bfloat16()), inputs)
    for number, part in found.items():
        assert part.weights.dtype == torch.float32
        torch.testing.assert_close(
            part.weights.sum(-1), torch.ones(part.weights.shape[:2]), rtol=0, atol=1e-2
        )
        torch.testing.assert_close(part.weights, exact[number].weights, rtol=0, atol=0.1)


@pytest.mark.exact
def test_the_mechanisms_are_architectures() -> None:
    """Each that is to be in all runs is there, by its name."""
    assert set(MECHANISMS) <= {known.name for known in ARCHITECTURES}


@pytest.mark.exact
def test_the_list_is_long() -> None:
    """At least 45 architectures of all families are compared, each under a name of its own."""
    assert len(AVAILABLE) >= 45
    assert len({known.name for known in ARCHITECTURES}) == len(ARCHITECTURES)
    assert {known.family for known in AVAILABLE.values()} == {
        "encoder",
        "decoder",
        "encoder-decoder",
    }


@pytest.mark.exact
def test_the_page_lists_them() -> None:
    """The list of docs/architectures.md is the one that ``python -m scripts.architectures`` writes."""
    page = PAGE.read_text("utf-8")
    assert page.split(BEGIN)[1].split(END)[0] == table()
