"""Modules of one's own and models that are loaded already: their attention is found, and they are left as they were."""

import copy
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import attnviz
from attnviz.errors import AttnvizError, InputError, ModelError, UsageError
from attnviz.layer import MultiHeadAttention
from attnviz.models import load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.models.maps import make_position_tokens
from attnviz.models.memory import OVERHEAD, estimate_torch_work
from attnviz.models.whole_weights import join_maps_of_layers
from attnviz.record import AttentionMap, Method
from attnviz.request import Engine, Keep, Placement, Prompt, Request
from tests.architectures import eager
from tests.calls import vectors
from tests.captures import require_slices
from tests.conftest import SENTENCE, Tiny
from tests.nets import (
    DIM,
    FIVE_VECTORS,
    HEADS,
    LSTM,
    SEVEN_VECTORS,
    Convolution,
    Einsum,
    Functional,
    build_seeded,
    make_encoder,
    make_multihead,
    make_transformer,
)
from tests.tolerance import require_close, rounding
from tests.untouched import state, world

pytestmark = pytest.mark.numeric


def result(net: nn.Module, inputs: Any) -> Tensor:
    """What a module returns in evaluation, the first of it."""
    training = net.training
    net.eval()
    with torch.no_grad():
        output = net(**inputs) if isinstance(inputs, dict) else net(*inputs)
    net.train(training)
    return output[0] if isinstance(output, tuple) else output


def attention_of(net: Any, query: Tensor, key: Tensor, **options: Any) -> Tensor:
    """The weights of nn.MultiheadAttention, (head, query, key), as it returns them itself."""
    with torch.no_grad():
        return copy.deepcopy(net).eval()(query, key, key, average_attn_weights=False, **options)[1][
            0
        ]


# Modules of one's own


@pytest.mark.parametrize("make", [LSTM, Convolution, Functional, Einsum])
def test_weights_of_ones_own_modules(make: Callable[[], nn.Module]) -> None:
    """Our layer behind an LSTM, a softmax by hand behind a convolution, torch's function: the weights they compute."""
    net = build_seeded(make)
    found = attnviz.capture(model=net, inputs=SEVEN_VECTORS)
    part = found.maps[0]
    expected = net.weights(SEVEN_VECTORS).detach()
    require_close(part.weights[0], expected.reshape(-1, 7, 7))
    assert (found.model, part.kind, len(found.maps)) == (make.__name__, "self", 1)
    assert part.visible.all() or make is Functional
    assert [token.text for token in part.keys] == list("0123456")
    assert found.fidelity is None or found.fidelity < rounding(32)


@pytest.mark.parametrize(
    "inputs",
    [
        (SEVEN_VECTORS, SEVEN_VECTORS, SEVEN_VECTORS),
        [SEVEN_VECTORS, SEVEN_VECTORS, SEVEN_VECTORS],
        {
            "query": SEVEN_VECTORS,
            "key": SEVEN_VECTORS,
            "value": SEVEN_VECTORS,
            "need_weights": False,
        },
    ],
)
def test_inputs_by_place_and_by_name(inputs: Any) -> None:
    """A module is called with a tuple or a list of arguments, or with a mapping of named ones."""
    net = build_seeded(make_multihead)
    require_close(
        attnviz.capture(model=net, inputs=inputs).maps[0].weights[0],
        attention_of(net, SEVEN_VECTORS, SEVEN_VECTORS),
    )


def test_keys_of_another_text() -> None:
    """Queries and keys of different texts are cross-attention, even where these are equally long."""
    net = build_seeded(make_multihead)
    found = attnviz.capture(model=net, inputs=(SEVEN_VECTORS, FIVE_VECTORS, FIVE_VECTORS)).maps[0]
    assert (found.kind, len(found.queries), len(found.keys)) == ("cross", 7, 5)
    require_close(found.weights[0], attention_of(net, SEVEN_VECTORS, FIVE_VECTORS))
    other = vectors(1, 7, DIM, seed=2)
    assert attnviz.capture(model=net, inputs=(SEVEN_VECTORS, other, other)).maps[0].kind == "cross"
    ours = attnviz.capture(
        model=MultiHeadAttention(DIM, HEADS, kv_heads=2), inputs=(SEVEN_VECTORS, FIVE_VECTORS)
    ).maps[0]
    assert (ours.kind, ours.heads) == ("cross", (0, 1, 2, 3))


@pytest.mark.parametrize("target", [FIVE_VECTORS, vectors(1, 7, DIM, seed=2)])
def test_transformers_have_three_maps(target: Tensor) -> None:
    """nn.Transformer: encoder, decoder and cross, told apart also where both texts are equally long."""
    net = build_seeded(make_transformer)
    found = attnviz.capture(model=net, inputs=(SEVEN_VECTORS, target))
    n = target.shape[1]
    assert [(part.kind, part.layers, part.weights.shape[2:]) for part in found.maps] == [
        ("encoder", (0, 1), (7, 7)),
        ("decoder", (0, 1, 2), (n, n)),
        ("cross", (0, 1, 2), (n, 7)),
    ]
    require_close(
        found.maps[0].weights[0],
        attention_of(net.encoder.layers[0].self_attn, SEVEN_VECTORS, SEVEN_VECTORS),
    )
    require_close(
        found.maps[1].weights[0], attention_of(net.decoder.layers[0].self_attn, target, target)
    )
    assert "cross L2 decoder.layers.2.multihead_attn" in found.notes[0]
    assert [part.statistics.distance is None for part in found.maps] == [
        False,
        False,
        True,
    ]  # between texts is none
    last = attnviz.capture(model=net, inputs=(SEVEN_VECTORS, target), layers=-1, heads="1").maps
    assert [(part.layers, part.heads) for part in last] == [
        ((1,), (1,)),
        ((2,), (1,)),
        ((2,), (1,)),
    ]
    require_close(last[2].weights, found.maps[2].weights[2:, 1:2])


def test_padding_of_an_encoder_is_masked() -> None:
    """src_key_padding_mask: padded keys are not visible, the others' weights are the layer's own."""
    net = build_seeded(make_encoder)
    padded = torch.tensor([[False] * 5 + [True] * 2])
    part = attnviz.capture(
        model=net, inputs={"src": SEVEN_VECTORS, "src_key_padding_mask": padded}
    ).maps[0]
    assert part.visible[0, 0].tolist() == [[True] * 5 + [False] * 2] * 7
    require_close(
        part.weights[0],
        attention_of(
            net.layers[0].self_attn, SEVEN_VECTORS, SEVEN_VECTORS, key_padding_mask=padded
        ),
    )


def test_a_sequence_may_come_first() -> None:
    """Without batch_first, and without a batch."""
    net = build_seeded(lambda: nn.MultiheadAttention(DIM, HEADS))
    expected = attention_of(net, SEVEN_VECTORS.transpose(0, 1), SEVEN_VECTORS.transpose(0, 1))
    for x in (SEVEN_VECTORS.transpose(0, 1), SEVEN_VECTORS[0]):
        require_close(attnviz.capture(model=net, inputs=(x, x, x)).maps[0].weights[0], expected)


@pytest.mark.parametrize(
    ("widths", "alike"), [([16, 32], 32), ((32,), 32), (None, 4 * 8), ("wide", 4 * 8)], ids=str
)
def test_the_forecast_takes_any_config(widths: Any, alike: int) -> None:
    """Widths that differ from layer to layer, as Gemma 3n has them, and none."""

    def estimate(width: Any) -> int:
        config = SimpleNamespace(hidden_size=8, intermediate_size=width)
        outer = SimpleNamespace(get_text_config=lambda: config)
        model: Any = SimpleNamespace(device=torch.device("cpu"), config=outer)
        return estimate_torch_work(10, 0, model)

    assert estimate(widths) == estimate(alike)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("make", [make_multihead, make_encoder, LSTM, Functional])
def test_another_default_device_changes_nothing(make: Callable[[], nn.Module], device: str) -> None:
    """Also not the one on which tensors hold no numbers, as one has it around large models."""
    net = build_seeded(make)
    inputs = (SEVEN_VECTORS,) * (3 if make is make_multihead else 1)
    expected = attnviz.capture(model=net, inputs=inputs).maps[0].weights
    with torch.device(device):
        found = attnviz.capture(model=net, inputs=inputs).maps[0].weights
        assert torch.get_default_device().type == device
    require_close(found, expected)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("method", ["attention", "gradient"])
def test_models_are_loaded_with_their_numbers(engine: Engine, method: Method, tiny: Tiny) -> None:
    """Where the default device is meta as elsewhere."""
    name = "builtin" if engine == "numpy" else str(tiny("llama"))
    expected = attnviz.capture(SENTENCE, model=name, method=method).maps[0].weights
    with torch.device("meta"):
        found = attnviz.capture(SENTENCE, model=name, method=method).maps[0].weights
    require_close(found, expected)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (make_multihead, (SEVEN_VECTORS, FIVE_VECTORS, FIVE_VECTORS)),
        (make_transformer, (SEVEN_VECTORS, FIVE_VECTORS)),
        (make_encoder, (SEVEN_VECTORS,)),
        (LSTM, (SEVEN_VECTORS,)),
        (Convolution, (SEVEN_VECTORS,)),
        (Functional, (SEVEN_VECTORS,)),
        (Einsum, (SEVEN_VECTORS,)),
    ],
)
@pytest.mark.parametrize("keep", ["weights", "tiles", "statistics", "edges"])
def test_outputs_are_the_same_before_and_after(
    make: Callable[[], nn.Module], inputs: Any, keep: Any
) -> None:
    """A module gives, bit by bit, what it gave before it was captured, and trains on if it was in training."""
    net = build_seeded(make).train()
    before = result(net, inputs)
    attnviz.capture(model=net, inputs=inputs, keep=keep, tiles=3)
    assert net.training
    assert torch.equal(result(net, inputs), before)


class Pool(nn.Module):
    """One weight a token, multiplied one by one: no product with values that could be seen."""

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to vector."""
        return (x.mean(-1, keepdim=True).softmax(1) * x).sum(1)


@pytest.mark.parametrize(
    "net", [nn.Sequential(nn.Linear(DIM, 4), nn.Softmax(-1)), Pool(), nn.LSTM(DIM, DIM)]
)
def test_modules_without_attention(net: nn.Module) -> None:
    """A classifier's softmax is no attention: it is said what was looked for."""
    with pytest.raises(
        ModelError, match=f"{type(net).__name__} has no attention that could be found: no nn.Multi"
    ):
        attnviz.capture(model=net, inputs=SEVEN_VECTORS)


class Changing(nn.Module):
    """It attends once more in each run."""

    times = 0

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        Changing.times += 1
        for _ in range(Changing.times):
            x = functional.scaled_dot_product_attention(x, x, x)
        return x


def test_modules_that_change_from_run_to_run() -> None:
    """A module is run twice: what it does the second time must be what was seen the first time."""
    with pytest.raises(
        ModelError, match="Changing calls attention 1 times in one run and 2 times in the next"
    ):
        attnviz.capture(model=Changing(), inputs=SEVEN_VECTORS)


def test_several_texts_are_refused(tiny: Tiny) -> None:
    """One at a time, of a module and of a model of the library."""
    with pytest.raises(
        InputError, match="hold 3 texts, images or parts of them that are read at once"
    ):
        attnviz.capture(model=build_seeded(make_encoder), inputs=vectors(3, 7, DIM))
    model = AutoModelForCausalLM.from_pretrained(tiny("llama"))
    with pytest.raises(InputError, match="hold 2 texts"):
        attnviz.capture(model=model, inputs={"input_ids": torch.ones(2, 5, dtype=torch.long)})


# Models of the library that are loaded already


@pytest.fixture(scope="module")
def llama(tiny: Tiny) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny("llama"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(tiny("llama"))


def test_a_loaded_model_reads_a_text(llama: Any, tokenizer: Any) -> None:
    """With its tokenizer; as by its name."""
    found = attnviz.capture(SENTENCE, llama, tokenizer=tokenizer)
    assert found.model == "LlamaForCausalLM"
    require_slices(found.maps[0].keys, SENTENCE)
    require_close(
        found.maps[0].weights, eager(llama, tokenizer(SENTENCE, return_tensors="pt"))["self"]
    )


@pytest.mark.parametrize(
    "form", ["encoding", "mapping", "lists", "tensor", "tuple", "options", "embeddings"]
)
@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_a_loaded_model_reads_inputs(form: str, name: str, tiny: Tiny, tokenizer: Any) -> None:
    """What a tokenizer returns, numbers by name or by place, options beside them, or embeddings."""
    model = AutoModelForCausalLM.from_pretrained(tiny(name))
    given = tokenizer(SENTENCE, return_tensors="pt", return_token_type_ids=False)
    numbers = given["input_ids"]
    inputs = {
        "encoding": given,
        "mapping": {"input_ids": numbers},
        "lists": tokenizer(SENTENCE, return_token_type_ids=False),
        "tensor": numbers,
        "tuple": (numbers,),
        "options": {**given, "use_cache": True, "output_attentions": True},
        "embeddings": {"inputs_embeds": model.get_input_embeddings()(numbers).detach()},
    }[form]
    found = attnviz.capture(model=model, inputs=inputs, tokenizer=tokenizer)
    part = found.maps[0]
    require_close(part.weights, eager(model, {"input_ids": numbers})["self"])
    if form == "embeddings":
        assert [token.text for token in part.keys][:3] == ["0", "1", "2"]
    else:
        assert found.text == SENTENCE
        assert part.keys[0].special
        require_slices(part.keys, SENTENCE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_padding_of_inputs_is_masked(side: str, name: str, tiny: Tiny, tokenizer: Any) -> None:
    """No token of the text sees padding, and its weights are those of eager."""
    model = AutoModelForCausalLM.from_pretrained(tiny(name))
    inputs = tokenizer(SENTENCE, return_tensors="pt", return_token_type_ids=False)
    room = (3, 0) if side == "left" else (0, 3)
    inputs = {name: functional.pad(part, room) for name, part in inputs.items()}
    part = attnviz.capture(model=model, inputs=inputs).maps[0]
    read = inputs["attention_mask"][0].bool().numpy()
    require_close(part.weights[:, :, read], eager(model, inputs)["self"].numpy()[:, :, read])
    assert not np.broadcast_to(part.visible, part.weights.shape)[:, :, read][..., ~read].any()


def test_a_loaded_encoder_decoder(tiny: Tiny) -> None:
    """Both texts by their numbers, or a text and what the model writes: the same each time, without dropout."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny("t5")).train()
    tokenizer = AutoTokenizer.from_pretrained(tiny("t5"))
    numbers = {
        "input_ids": tokenizer(SENTENCE)["input_ids"],
        "decoder_input_ids": [0, *tokenizer("a cat")["input_ids"]],
    }
    found = attnviz.capture(model=model, inputs=numbers, tokenizer=tokenizer)
    assert [part.kind for part in found.maps] == ["encoder", "decoder", "cross"]
    assert (found.text, found.target) == (SENTENCE, "a cat")
    require_slices(found.maps[2].queries, "a cat")
    first, again = (attnviz.capture(SENTENCE, model, tokenizer=tokenizer) for _ in range(2))
    assert first.target == again.target
    assert model.training


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({}, UsageError, "no text"),
        ({"text": ""}, UsageError, "no text"),
        ({"text": "a", "layers": "9"}, UsageError, "layer 9"),
        ({"text": "a", "layers": "x"}, UsageError, "2-5 or all"),
        ({"text": "a", "heads": "L0H1,2"}, UsageError, "mixes"),
        ({"text": "a", "keep": "all"}, UsageError, "weights, tiles, statistics, edges"),
        ({"text": "a", "tiles": 0}, UsageError, "tiles=0"),
        ({"text": "a", "dtype": "int8"}, UsageError, "bfloat16"),
        ({"text": "a", "device": "tpu"}, UsageError, "cpu"),
        ({"text": "a", "model": "./nowhere"}, ModelError, "no model folder"),
        ({"text": "a", "model": Einsum()}, UsageError, "inputs="),
        ({"text": "a", "model": Einsum(), "inputs": SEVEN_VECTORS}, UsageError, "not both"),
        (
            {"model": "llama", "inputs": {"input_ids": [[1, 2], [3]]}},
            InputError,
            "lists that make no tensor",
        ),
        ({"model": "llama", "inputs": [1, 2]}, InputError, "holds no tensor"),
        ({"text": "a", "model": "llama"}, UsageError, "tokenizer="),
    ],
)
def test_captures_that_cannot_be(
    options: dict[str, Any], error: type[AttnvizError], told: str, llama: Any
) -> None:
    """Each mistake is an AttnvizError of one line."""
    if options.get("model") == "llama":
        options = {**options, "model": llama}
    with pytest.raises(error, match=told) as raised:
        attnviz.capture(**options)
    assert "\n" not in str(raised.value)


def set_free_memory(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Let the system have so many bytes of free memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=count))


def test_memory_is_estimated_first(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever would take more memory at its peak than is free is refused, saying what fits."""
    set_free_memory(monkeypatch, 2000)
    loaded = HuggingFace("llama", llama, tokenizer)
    told = r"weights of 18 heads over 12 x 12 tokens take up to 0.0 GB of memory, and 0.0 GB are"
    for capture in (
        lambda: loaded.capture(Prompt(SENTENCE), Request()),
        lambda: attnviz.capture(model=llama, inputs=tokenizer(SENTENCE)),
    ):
        with pytest.raises(InputError, match=told):
            capture()
    with pytest.raises(InputError, match="18 heads over 14 x 14"):
        loaded.capture(Prompt(SENTENCE, generate=2), Request())
    with pytest.raises(InputError, match="32 heads over 7 x 7"):
        attnviz.capture(model=build_seeded(make_transformer), inputs=(SEVEN_VECTORS, FIVE_VECTORS))
    for generate in (0, 2):
        with pytest.raises(InputError, match=r"the tiles of 18 heads .* shorten the text"):
            loaded.capture(Prompt(SENTENCE, generate=generate), Request(keep="tiles"))


@pytest.mark.parametrize("generate", [0, 2])
def test_what_is_kept_decides_what_fits(
    generate: int, llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles, statistics and windows fit where all weights do not, also of a text that is written."""
    loaded = HuggingFace("llama", llama, tokenizer)
    text = " ".join([SENTENCE] * 10)
    # the weights take half a million bytes more; those of a text that is written are copied
    set_free_memory(monkeypatch, OVERHEAD + (2_900_000 if generate else 900_000))
    with pytest.raises(InputError, match=r"18 heads .* [1-9]\d* of them fit"):
        loaded.capture(Prompt(text, generate=generate), Request())
    requests = [Request(keep="tiles", tiles=4), Request(keep="statistics")]
    if not generate:
        requests.append(Request(rows=slice(3, 5)))
    for request in requests:
        assert loaded.capture(Prompt(text, generate=generate), request).maps


@pytest.mark.parametrize("keep", ["weights", "tiles"])
@pytest.mark.parametrize("engine", ["builtin", "numpy"])
def test_numpy_estimates_its_memory_first(
    engine: str,
    keep: Keep,
    tmp_path: Path,
    llama: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Models that NumPy runs are refused too, for weights and for tiles, before they run."""
    name = engine
    if engine == "numpy":
        llama.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        name = str(tmp_path)
    placement = Placement(engine="auto" if engine == "builtin" else "numpy")
    model = load_model(name, placement=placement)
    assert model.capture(Prompt(SENTENCE), Request(keep=keep)).maps
    set_free_memory(monkeypatch, 2000)
    with pytest.raises(InputError, match=rf"the {keep} of \d+ heads .* and 0.0 GB are free"):
        model.capture(Prompt(SENTENCE), Request(keep=keep))


def test_layers_are_joined_without_a_copy_of_all() -> None:
    """Weights are put in their place as their layer comes, in the order that was asked for."""
    layers, tokens = tuple(range(15, -1, -1)), make_position_tokens(128)
    weights = np.full((1, 2, 128, 128), 1 / 128, np.float32)

    def make_layer_maps() -> Iterator[AttentionMap]:
        for layer in sorted(layers):
            ours = weights * np.float32(1 - layer / 100)
            yield AttentionMap("self", (layer,), (0, 1), tokens, tokens, ours, np.array(True))

    tracemalloc.start()
    try:
        (joined,) = join_maps_of_layers([(layers, (0, 1))], make_layer_maps())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert joined.weights is not None
    assert joined.layers == layers
    firsts = joined.weights[:, 0, 0, 0] * 128
    np.testing.assert_allclose(firsts, [1 - layer / 100 for layer in layers], rtol=1e-6)
    assert peak < 1.5 * joined.weights.nbytes


# Left as found


class FaultError(Exception):
    """What no library expects."""


def prepared(net: nn.Module, place: str, error: BaseException, after: int) -> nn.Module:
    """A module in training, its parts in different modes, some frozen, with gradients, which fails in a later run."""
    runs: list[int] = []

    def fail(*_: Any) -> None:
        runs.append(1)
        if len(runs) > after:
            raise error

    for number, (part, parameter) in enumerate(zip(net.modules(), net.parameters(), strict=False)):
        part.training = number % 2 == 0
        parameter.requires_grad_(number % 3 > 0)
        parameter.grad = torch.ones_like(parameter)
    net.register_forward_hook(lambda *_: None)
    net.get_submodule(place).register_forward_pre_hook(fail)
    return net


ERRORS = pytest.mark.parametrize(
    "error",
    [RuntimeError("no"), FaultError("no"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
OWN = [
    (
        make_multihead,
        "out_proj",
        {"query": SEVEN_VECTORS, "key": SEVEN_VECTORS, "value": SEVEN_VECTORS},
    ),
    (make_transformer, "decoder.layers.2.linear2", {"src": SEVEN_VECTORS, "tgt": FIVE_VECTORS}),
    (make_encoder, "layers.1.linear1", {"src": SEVEN_VECTORS}),
    (LSTM, "attention.value", {"x": SEVEN_VECTORS}),
    (Convolution, "dropout", {"x": SEVEN_VECTORS}),
]


@pytest.mark.exact
@ERRORS
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize(("make", "place", "inputs"), OWN[1:])
def test_modules_that_fail_are_left_as_found(
    make: Callable[[], nn.Module], place: str, inputs: Any, after: int, error: BaseException
) -> None:
    """In the first run and in the second: modes, hooks, gradients, numbers, and what is common to all."""
    net = prepared(build_seeded(make), place, error, after)
    before = state(net), world()
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ModelError if isinstance(error, Exception) else type(error)):
        attnviz.capture(model=net, inputs=inputs)
    assert (state(net), world()) == before


@pytest.mark.exact
@pytest.mark.parametrize(("make", "place", "inputs"), OWN)
def test_modules_that_succeed_are_left_as_found(
    make: Callable[[], nn.Module], place: str, inputs: Any
) -> None:
    """So they are where nothing fails."""
    net = prepared(build_seeded(make), place, FaultError(), after=99)
    before = state(net), world()
    attnviz.capture(model=net, inputs=inputs)
    assert (state(net), world()) == before


LIBRARY = [
    ("llama", "model.layers.1.mlp"),
    ("gpt_neo", "transformer.h.1.mlp"),
    ("t5", "decoder.block.1.layer.2"),
]


@pytest.mark.exact
@ERRORS
@pytest.mark.parametrize(("name", "place"), LIBRARY)
@pytest.mark.parametrize(("generate", "after"), [(0, 0), (0, 1), (4, 1), (4, 3)])
def test_models_that_fail_are_left_as_found(
    name: str, place: str, generate: int, after: int, error: BaseException, tiny: Tiny
) -> None:
    """In the survey, in the run, and while they write: attention implementations too."""
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model = prepared(kind.from_pretrained(tiny(name)), place, error, after)
    loaded = HuggingFace(name, model, AutoTokenizer.from_pretrained(tiny(name)))
    before = state(model), world()
    with pytest.raises(ModelError if isinstance(error, Exception) else type(error)):
        loaded.capture(Prompt(SENTENCE, generate=0 if name == "t5" else generate), Request())
    assert (state(model), world()) == before
    assert model.config._attn_implementation == ("eager" if name == "gpt_neo" else "sdpa")


@pytest.mark.exact
@pytest.mark.parametrize(("name", "place"), LIBRARY)
@pytest.mark.parametrize("generate", [0, 3])
def test_models_that_succeed_are_left_as_found(
    name: str, place: str, generate: int, tiny: Tiny
) -> None:
    """So they are where nothing fails, and can be trained on."""
    kind = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    model = prepared(kind.from_pretrained(tiny(name)), place, FaultError(), after=999)
    loaded = HuggingFace(name, model, AutoTokenizer.from_pretrained(tiny(name)))
    before = state(model), world()
    loaded.capture(Prompt(SENTENCE, generate=0 if name == "t5" else generate), Request())
    assert (state(model), world()) == before
    numbers = torch.tensor([[5, 6, 7]])
    model(input_ids=numbers, labels=numbers).loss.backward()


def test_out_of_memory_is_told_as_such(
    llama: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own errors for it, of a CPU and of a GPU, are Python's MemoryError; a model's other failures are its."""
    plain = type(llama.model.layers[1].mlp).forward
    for error, told in (
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."
            ),
            MemoryError,
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), MemoryError),
        (MemoryError(), MemoryError),
        (IndexError("index out of range in self"), ModelError),
    ):

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(llama.model.layers[1].mlp, "forward", fail)
        with pytest.raises(told):
            attnviz.capture(SENTENCE, llama, tokenizer=tokenizer)
        monkeypatch.undo()
    assert type(llama.model.layers[1].mlp).forward is plain
