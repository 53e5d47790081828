"""What is shown is what the model computes as it was handed over; what cannot be read so is refused."""

import copy
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb, eager_attention_forward

import attnviz
from attnviz.engine.observers.change import ChangeObserver
from attnviz.errors import ModelError
from attnviz.models.huggingface.attention import AttentionReader
from attnviz.models.maps import make_edits
from attnviz.models.untouched import measure_change
from attnviz.record import Capture
from attnviz.request import Edge, Intervention, Request
from tests.architectures import BASE, GPT, GROUPED, T5, TOKENS, set_eager
from tests.tolerance import close

pytestmark = pytest.mark.numeric

WIDTH = 64
IDS = {"input_ids": torch.randint(3, 99, (1, 12), generator=torch.Generator().manual_seed(0))}
WINDOW = 3


def build(name: str, config: Mapping[str, Any], **options: Any) -> Any:
    """Make a small random model whose attention is far from uniform."""
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        model = kind._from_config(
            kind.config_class(**copy.deepcopy(dict(config))), **options
        ).eval()
        for parameter in model.parameters():
            parameter += 0.17 * torch.randn_like(parameter)
    return model


def run_eager(model: Any, inputs: Mapping[str, Tensor] = IDS) -> Tensor:
    """Return the weights (layer, head, query, key) that the library's own eager attention gives."""
    model = copy.deepcopy(model)
    set_eager(model)
    with torch.no_grad():
        return torch.cat(model(**inputs, output_attentions=True)["attentions"])


def require_weights(model: Any, expected: Tensor, inputs: Mapping[str, Tensor] = IDS) -> Capture:
    """Require that a capture of a model has one map, of these weights."""
    capture = attnviz.capture(model=model, inputs=inputs)
    (part,) = capture.maps
    torch.testing.assert_close(torch.tensor(part.weights), expected, **close(WIDTH))
    return capture


@pytest.mark.parametrize("name", ["SplinterModel", "AlignTextModel", "ClapTextModel"])
def test_models_without_sdpa_are_not_made_causal(name: str) -> None:
    """A class that has no SDPA form, and says nothing of causality, sees every key where there is no mask."""
    model = build(name, BASE)
    capture = require_weights(model, run_eager(model))
    assert capture.maps[0].visible.all()


def test_a_model_handed_over_with_eager_attention_is_read_as_such() -> None:
    """Falcon's eager code adds ALiBi twice, its SDPA once: each is what that model computes."""
    config = BASE | {"alibi": True}
    (twice,) = attnviz.capture(
        model=build("FalconModel", config, attn_implementation="eager"), inputs=IDS
    ).maps
    (once,) = attnviz.capture(model=build("FalconModel", config), inputs=IDS).maps
    torch.testing.assert_close(
        torch.tensor(twice.weights), run_eager(build("FalconModel", config)), **close(WIDTH)
    )
    assert abs(twice.weights - once.weights).max() > 1e-3


# Functions that users register

made: list[Tensor] = []
"""The weights that the functions below had, in their order."""


def window_scores(query: Tensor, key: Tensor) -> Tensor:
    """Return scaled scores where a query sees itself and the two keys before it."""
    shared = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(shared, 1).mT * 0.3
    back = torch.arange(query.shape[2])[:, None] - torch.arange(key.shape[2])
    return scores.masked_fill((back < 0) | (back >= WINDOW), -1e9)


def divide_exponentials(scores: Tensor) -> Tensor:
    """Return the softmax of scores, in a way in which nobody sees one."""
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def attend_in_window(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any
) -> Any:
    """Attend with a softmax, whatever the mask."""
    weights = window_scores(query, key).softmax(-1)
    made.append(weights)
    shared = query.shape[1] // key.shape[1]
    return (weights @ value.repeat_interleave(shared, 1)).transpose(1, 2).contiguous(), weights


def attend_fused(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> Any:
    """Attend with torch's function, whatever the mask."""
    scores = window_scores(query, key)
    made.append(divide_exponentials(scores))
    shared = query.shape[1] // key.shape[1]
    keys, values = (part.repeat_interleave(shared, 1) for part in (key, value))
    output = functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=scores > -1e8, scale=0.3
    )
    return output.transpose(1, 2).contiguous(), None


@functools.wraps(sdpa_attention_forward)
def attend_sharply(module: Any, *args: Any, **options: Any) -> Any:
    """Attend as the library does, with scores of half the size."""
    return sdpa_attention_forward(module, *args, **{**options, "scaling": options["scaling"] / 2})


def attend_unseen(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> Any:
    """Attend in a way that shows neither a softmax nor torch's function."""
    shared = query.shape[1] // key.shape[1]
    weights = divide_exponentials(window_scores(query, key))
    return (weights @ value.repeat_interleave(shared, 1)).transpose(1, 2).contiguous(), weights


def hide_second_key(
    batch_size: int, q_length: int, kv_length: int, *args: Any, **options: Any
) -> Tensor:
    """Make the library's mask, with the second key hidden from all queries but its own."""
    options["allow_is_causal_skip"] = False
    options["allow_is_bidirectional_skip"] = False
    mask = sdpa_mask(batch_size, q_length, kv_length, *args, **options).clone()
    mask[..., 2:, 1] = False
    return mask


def hide_third_key(*args: Any, **options: Any) -> Tensor:
    """Make the library's eager mask, with the third key hidden from the queries after it."""
    mask = eager_mask(*args, **options).clone()
    mask[..., 3:, 2] = torch.finfo(mask.dtype).min
    return mask


@pytest.fixture
def registry() -> Iterator[Callable[..., None]]:
    """Register functions with the library for the length of a test."""
    mappings = AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping
    before = [dict(mapping) for mapping in mappings]

    def register(name: str, attention: Any = None, mask: Any = None) -> None:
        if attention is not None:
            AttentionInterface.register(name, attention)
        if mask is not None:
            AttentionMaskInterface.register(name, mask)

    yield register
    for mapping, kept in zip(mappings, before, strict=True):
        mapping.clear()
        mapping.update(kept)


@pytest.mark.parametrize("function", [attend_in_window, attend_fused])
@pytest.mark.parametrize("name", ["mine", "sdpa", "eager"])
@pytest.mark.parametrize(("kind", "config"), [("LlamaModel", GROUPED), ("BertModel", BASE)])
def test_functions_of_the_user_are_called(
    name: str, function: Any, kind: str, config: Any, registry: Any
) -> None:
    """A function that a user registered, or put in the place of the library's, is what the model computes."""
    registry(name, function)
    model = build(kind, config, attn_implementation=name)
    made.clear()
    with torch.no_grad():
        model(**IDS)
    expected = torch.cat(made)
    capture = require_weights(model, expected)
    assert capture.fidelity < 1e-5
    assert not expected[..., -1, :-WINDOW].any()


def test_a_wrapped_function_of_the_library_is_the_users(registry: Any) -> None:
    """It has the library's name and does something else."""
    registry("sdpa", attend_sharply)
    model = build("LlamaModel", GROUPED)
    halved = copy.deepcopy(model)
    for layer in halved.layers:
        layer.self_attn.scaling /= 2
    require_weights(model, run_eager(halved))


@pytest.mark.parametrize(
    ("mask", "query", "key"), [(hide_second_key, 5, 1), (hide_third_key, 6, 2)]
)
@pytest.mark.parametrize("name", ["mine", "sdpa"])
def test_mask_functions_of_the_user_are_called(
    name: str, mask: Any, query: int, key: int, registry: Any
) -> None:
    """What a registered mask hides is hidden, under a name of its own and in the place of the library's."""
    registry(name, sdpa_attention_forward, mask)
    (part,) = attnviz.capture(
        model=build("LlamaModel", GROUPED, attn_implementation=name), inputs=IDS
    ).maps
    assert not part.weights[..., query, key].any()
    assert not part.visible[..., query, key].any()


def test_a_function_without_a_mask_gets_none(registry: Any) -> None:
    """The library makes no mask for a name that has no mask function, and neither do we: BERT then sees padding."""
    registry("mine", sdpa_attention_forward)
    model = build("BertModel", BASE, attn_implementation="mine")
    padded = IDS | {"attention_mask": torch.tensor([[1] * 9 + [0] * 3])}
    (part,) = attnviz.capture(model=model, inputs=padded).maps
    assert part.weights[..., -3:].any()


@pytest.mark.parametrize("name", ["mine", "sdpa"])
def test_functions_that_show_nothing_are_refused(name: str, registry: Any) -> None:
    """Where neither a softmax nor torch's function is seen, nothing can be told, and nothing is drawn."""
    registry(name, attend_unseen)
    model = build("LlamaModel", GROUPED, attn_implementation=name)
    with pytest.raises(
        ModelError, match=rf"the attention function '{name}' of this model is not the library's"
    ):
        attnviz.capture(model=model, inputs=IDS)


def test_replaced_code_of_a_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The eager function of a model's own file, replaced by hand, is what an eager model computes."""
    monkeypatch.setattr(
        "transformers.models.llama.modeling_llama.eager_attention_forward", attend_in_window
    )
    model = build("LlamaModel", GROUPED, attn_implementation="eager")
    made.clear()
    with torch.no_grad():
        model(**IDS)
    require_weights(model, torch.cat(made))


class Bare(nn.Module):
    """An attention that a user puts into a model, which calls nothing of the library."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.query, self.key, self.value = like.self.query, like.self.key, like.self.value
        self.output = like.output

    def forward(self, states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Attend within the window."""
        query, key, value = (
            part(states).unflatten(-1, (4, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = window_scores(query, key).softmax(-1)
        made.append(weights)
        return self.output((weights @ value).transpose(1, 2).flatten(2), states), weights


def test_replaced_modules_of_a_model_are_read() -> None:
    """A layer of the user's own, in one place of a model, is seen beside the library's."""
    model = build("BertModel", BASE)
    model.encoder.layer[1].attention = Bare(model.encoder.layer[1].attention)
    made.clear()
    with torch.no_grad():
        model(**IDS)
    (part,) = attnviz.capture(model=model, inputs=IDS).maps
    assert part.layers == (0, 1)
    torch.testing.assert_close(torch.tensor(part.weights[1]), made[0][0], **close(WIDTH))


class Noisy(nn.Module):
    """Something in a model that depends on who watches."""

    def forward(self, states: Tensor) -> Tensor:
        """Turn the vectors around where our function is set."""
        return states if self.config._attn_implementation in ("sdpa", "eager") else states.flip(-1)


@pytest.mark.parametrize(
    ("name", "config"), [("BertModel", BASE), ("GPT2Model", GPT), ("T5Model", T5)]
)
def test_what_changes_when_it_is_watched_is_read_untouched(name: str, config: Any) -> None:
    """A model that computes something else with our function in it is read with its own."""
    model = build(name, config)
    noise = Noisy()
    noise.config = model.config
    embedding = model.get_input_embeddings()
    model.set_input_embeddings(nn.Sequential(embedding, noise))
    inputs = IDS | ({"decoder_input_ids": IDS["input_ids"]} if name == "T5Model" else {})
    reading = AttentionReader(model)
    surveyed = reading.survey(inputs)
    assert not reading.observed
    heads = {0: tuple(range(surveyed.sites[0].heads))}
    found, _ = reading.read_calls(surveyed, inputs, heads, Request())
    model.set_input_embeddings(embedding)
    plain = attnviz.capture(model=model, inputs=inputs).maps[0]
    torch.testing.assert_close(found[0].weights, torch.tensor(plain.weights[0]), **close(WIDTH))


class Fickle(nn.Module):
    """Something in a model that changes from run to run."""

    runs = 0

    def forward(self, states: Tensor) -> Tensor:
        """Add the number of the run."""
        type(self).runs += 1
        return states * (1 + type(self).runs)


@pytest.mark.parametrize(
    ("name", "config"), [("BertModel", BASE), ("GPT2Model", GPT), ("LlamaModel", GROUPED)]
)
def test_what_cannot_be_read_is_refused(name: str, config: Any) -> None:
    """A model that says something else each time is refused in a line."""
    model = build(name, config)
    model.set_input_embeddings(nn.Sequential(model.get_input_embeddings(), Fickle()))
    with pytest.raises(
        ModelError, match=f"what {name} computes changes by .* when its attention is read"
    ):
        attnviz.capture(model=model, inputs=IDS)


def test_a_change_is_measured() -> None:
    """It is relative, the largest of all outputs, infinite for other shapes, and none where there was no number."""
    one = {
        "logits": torch.tensor([3.0, 4.0]),
        "past_key_values": torch.zeros(1),
        "states": (torch.ones(4),),
    }
    assert measure_change(one, one) == 0
    assert measure_change(one, one | {"past_key_values": torch.ones(1)}) == 0
    assert measure_change(one, one | {"logits": torch.tensor([3.0, 4.5])}) == pytest.approx(0.1)
    assert measure_change(one, one | {"states": (torch.zeros(4),)}) == 1
    assert measure_change(one, one | {"states": (torch.zeros(5),)}) == float("inf")
    assert measure_change(one, one | {"logits": torch.tensor([3.0, float("nan")])}) == float("inf")
    assert (
        measure_change(
            {"logits": torch.tensor([3.0, float("nan")])}, {"logits": torch.tensor([3.0, 1.0])}
        )
        == 0
    )


# Layers that vanish or change number

FUNNEL = TOKENS | {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "num_decoder_layers": 1}


@pytest.mark.parametrize("blocks", [[1, 1], [1, 2], [2, 1, 1]])
def test_layers_that_shorten_the_text_are_shown(blocks: list[int]) -> None:
    """Funnel halves its text from block to block: each layer is there, in a map of its size, and a note names it."""
    model = build("FunnelModel", FUNNEL | {"block_sizes": blocks})
    expected = collect_softmax(model)
    assert len(expected) == sum(blocks) + 1
    capture = attnviz.capture(model=model, inputs=IDS)
    layers = {
        layer: part.weights[i] for part in capture.maps for i, layer in enumerate(part.layers)
    }
    assert [*layers] == [*range(len(expected))]
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(torch.tensor(layers[layer]), weights, **close(WIDTH))
    assert f"L{blocks[0]} (6 queries, 12 keys)" in capture.notes[0]


def collect_softmax(model: Any) -> list[Tensor]:
    """Return what each softmax of a run gives, (head, query, key)."""
    made.clear()
    original = torch.softmax

    def softmax(*args: Any, **options: Any) -> Tensor:
        made.append(original(*args, **options))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch, "softmax", softmax)
        model(**IDS)
    return [weights[0] for weights in made]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_differential_attention_is_one_layer(layers: int, attention: str) -> None:
    """DiffLlama uses the weights of a layer twice, with other values: they are shown once."""
    model = build(
        "DiffLlamaModel", GROUPED | {"num_hidden_layers": layers}, attn_implementation=attention
    )
    capture = require_weights(model, run_eager(model))
    assert capture.maps[0].layers == tuple(range(layers))


class Twice(nn.Module):
    """A Llama attention that uses its weights for two kinds of values, in two calls of the library's interface."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, hidden_states: Tensor, position_embeddings: Any, attention_mask: Any, **_: Any
    ) -> Any:
        """Attend twice, and mix."""
        inner = self.inner
        query, key, value = (
            project(hidden_states).unflatten(-1, (-1, inner.head_dim)).transpose(1, 2)
            for project in (inner.q_proj, inner.k_proj, inner.v_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            inner.config._attn_implementation, eager_attention_forward
        )
        values = value, value.flip(-1)
        first, second = (
            attend(inner, query, key, part, attention_mask, scaling=inner.scaling)[0]
            for part in values
        )
        return inner.o_proj((first - second / 2).flatten(2)), None


def test_a_layer_of_the_users_that_uses_its_weights_twice_is_one_layer() -> None:
    """Two calls of the interface in one run of a module, with the same queries and keys, are one layer."""
    model = build("LlamaModel", GROUPED)
    first = run_eager(model)[0]  # what comes before it is the same
    for layer in model.layers:
        layer.self_attn = Twice(layer.self_attn)
    (part,) = attnviz.capture(model=model, inputs=IDS).maps
    assert part.layers == (0, 1)
    torch.testing.assert_close(torch.tensor(part.weights[0]), first, **close(WIDTH))


def attend_fused_twice(
    _: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any
) -> Any:
    """Attend with torch's function for two kinds of values."""
    allowed = window_scores(query, key) > -1e8
    made.append(divide_exponentials(window_scores(query, key)))
    outputs = [
        functional.scaled_dot_product_attention(query, key, part, attn_mask=allowed, scale=0.3)
        for part in (value, value.flip(-1))
    ]
    return (outputs[0] - outputs[1] / 2).transpose(1, 2).contiguous(), None


def test_a_function_of_the_users_that_uses_its_weights_twice_is_one_layer(registry: Any) -> None:
    """So are two calls of torch's function in one attention function."""
    registry("mine", attend_fused_twice)
    model = build("BertModel", BASE, attn_implementation="mine")
    made.clear()
    with torch.no_grad():
        model(**IDS)
    require_weights(model, torch.cat(made))


def test_canine_shows_the_layers_of_its_shortened_text() -> None:
    """CANINE's deep layers read every other place, its first and last ones all: each has a map of its size."""
    sizes = {"downsampling_rate": 2, "local_transformer_stride": 16}
    model = build("CanineModel", BASE | sizes)
    capture = attnviz.capture(model=model, inputs=IDS)
    assert [(part.layers, len(part.queries)) for part in capture.maps] == [
        ((0,), 12),
        ((1, 2), 6),
        ((3,), 12),
    ]
    assert "L1 (6 queries, 6 keys)" in capture.notes[0]


def test_an_edge_of_a_layer_that_is_used_twice_is_cut_in_both_uses() -> None:
    """What comes after is the same as with the key hidden by a mask."""
    model = build("DiffLlamaModel", GROUPED)
    reading = AttentionReader(model)
    sites = reading.survey(IDS).sites
    assert [site.layer for site in sites] == [0, 0, 1, 1]
    tokens = (tuple(range(12)),) * 2
    cut = make_edits([Intervention(cuts=(Edge(None, None, None, 11, 3),))], sites, lambda _: tokens)
    changed = reading.run(IDS, ChangeObserver(cut))[0].last_hidden_state
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[11, 3] = False
    with torch.no_grad():
        expected = model(**IDS, attention_mask=mask[None, None]).last_hidden_state
    torch.testing.assert_close(changed, expected, **close(WIDTH))


VISION = {
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "depth": 2,
    "num_heads": 4,
}
QWEN = {**VISION, "embed_dim": 32, "mlp_ratio": 2, "hidden_size": 32}
QWEN_2_5 = {
    **VISION,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
GLM = {
    **VISION,
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "image_size": 16,
}
IMAGES = {
    "image_token_id": 90,
    "video_token_id": 91,
    "vision_start_token_id": 92,
    "vision_end_token_id": 93,
}
IMAGES |= {"image_start_token_id": 92, "image_end_token_id": 93}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("Qwen2VLForConditionalGeneration", QWEN),
        ("Qwen2_5_VLForConditionalGeneration", QWEN_2_5),
        ("Glm4vForConditionalGeneration", GLM),
    ],
)
def test_images_have_maps_of_their_own(name: str, vision: dict[str, Any]) -> None:
    """Two images of one size: the layers of each follow each other, not interleaved, and the notes name them."""
    model = build(
        name,
        {"text_config": GROUPED | {"rope_parameters": ROPE}, "vision_config": vision, **IMAGES},
    )
    ids = torch.tensor([[5, 92, 90, 90, 90, 90, 93, 7, 92, 90, 90, 90, 90, 93, 8]])
    pixels = torch.randn(32, 3 * 2 * 16, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": pixels, "mm_token_type_ids": (ids == 90).long()}
    inputs["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 4, 4]])
    capture = attnviz.capture(model=model, inputs=inputs)
    assert [(part.layers, len(part.queries)) for part in capture.maps] == [
        ((0, 1), 16),
        ((2, 3), 16),
        ((4, 5), 15),
    ]
    tower = "model.visual.blocks"
    text = "model.language_model.layers"
    assert capture.notes == (
        f"layers: 0-1 {tower} (part 1 of 2 of its input), 2-3 {tower} (part 2 of 2 of its input), 4-5 {text}",
    )
    one = inputs | {
        "input_ids": torch.cat([ids[:, :8], ids[:, 14:]], 1),
        "pixel_values": pixels[:16],
    }
    one |= {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    one["mm_token_type_ids"] = (one["input_ids"] == 90).long()
    alone = attnviz.capture(model=model, inputs=one).maps[0]
    torch.testing.assert_close(
        torch.tensor(capture.maps[0].weights), torch.tensor(alone.weights), **close(WIDTH)
    )


# What the fidelity is measured against


class Half(nn.Module):
    """torch's function, in the type of its inputs."""

    def forward(self, states: Tensor) -> Tensor:
        """(1, time, 32) to the same."""
        heads = states.unflatten(-1, (4, 8)).transpose(1, 2)
        return (
            functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        )


class Softmax(nn.Module):
    """The formula written out, in the type of its inputs."""

    def forward(self, states: Tensor) -> Tensor:
        """(1, time, 32) to the same."""
        return (states @ states.mT / 6).softmax(-1) @ states


@pytest.mark.parametrize(
    "net", [Half(), Softmax(), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_alarm(net: nn.Module, dtype: torch.dtype) -> None:
    """A module in a half type differs by its own rounding, which is no reason to warn."""
    states = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(0))
    capture = attnviz.capture(model=copy.deepcopy(net).to(dtype), inputs=states.to(dtype))
    assert not [line for line in capture.notes if "do not rely" in line]


@pytest.mark.parametrize(
    "net", [Half(), Softmax(), nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)]
)
def test_autocast_is_no_alarm(net: nn.Module) -> None:
    """Nor is one that torch runs in a half type by itself."""
    states = torch.randn(1, 200, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        capture = attnviz.capture(model=net, inputs=states)
    assert not [line for line in capture.notes if "do not rely" in line]


def test_the_reference_is_told(call: Any, minilm: Any) -> None:
    """JSON and -v say against what the fidelity was measured."""
    shown = call("show", "The cat sat.", "-m", minilm, "-v", "--json", "--engine", "torch")
    assert '"fidelity_reference": "torch\'s scaled_dot_product_attention' in shown.stdout
    assert 0 < json.loads(shown.stdout)["output_change"] < 1e-5
    assert "measured against: torch's scaled_dot_product_attention" in shown.stderr
    assert "of its size from that without attnviz" in shown.stderr


@pytest.mark.exact
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["inspect", "The cat sat"],
            "the maps of this capture are not of the same tokens: choose some with --layers",
        ),
        (
            ["heads"],
            "the maps of this capture are not of the same tokens: heads are scored where all layers read",
        ),
        (
            ["attribute", "The cat sat"],
            "attribute is for models whose layers all read the whole text",
        ),
        (
            ["show", "The cat sat", "--knock-out", "sat->cat"],
            "edges are cut, only where all layers read its tokens",
        ),
    ],
)
def test_questions_to_a_model_that_shortens_its_text(
    words: list[str], line: str, call: Any, funnel: Path
) -> None:
    """What needs the same tokens in all layers says so in a line."""
    asked = call(*words, "-m", funnel)
    assert asked.returncode == 4
    assert line in asked.stderr
    assert asked.stdout == ""


@pytest.mark.exact
@pytest.mark.parametrize(
    "words", [["show"], ["show", "--view", "grid"], ["show", "-l", "1"], ["inspect", "-l", "2"]]
)
def test_a_model_that_shortens_its_text_is_drawn(words: list[str], call: Any, funnel: Path) -> None:
    """A layer of another length is drawn, with numbers for its tokens."""
    drawn = call(*words, "The cat sat on the mat", "-m", funnel)
    assert drawn.returncode == 0, drawn.stderr
    assert "L1 (4 queries, 8 keys)" in " ".join((drawn.stdout + drawn.stderr).split())


@pytest.fixture(scope="module")
def funnel(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    """Return the folder of a small Funnel model with the tokenizer of MiniLM."""
    folder = tmp_path_factory.mktemp("funnel")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    tokenizer.save_pretrained(folder)
    build(
        "FunnelModel", FUNNEL | {"vocab_size": len(tokenizer), "block_sizes": [1, 2]}
    ).save_pretrained(folder)
    return folder
