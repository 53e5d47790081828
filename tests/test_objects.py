"""What a Python user hands over, whatever it is: read rightly, or refused in one line."""

import copy
import importlib
import json
import subprocess
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BatchEncoding,
    DynamicCache,
    LlamaForCausalLM,
    StaticCache,
    pipeline,
)

import attnviz
from attnviz.analysis import segments
from attnviz.errors import AttnvizError, InputError, ModelError, UsageError
from attnviz.models import load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.request import Intervention, Prompt, Request, Target
from attnviz.selection import TokenReference
from tests.architectures import eager
from tests.conftest import SENTENCE, Tiny
from tests.nets import DIM, SEVEN_VECTORS, Einsum, build_seeded, make_multihead
from tests.tolerance import require_close
from tests.untouched import state, world

pytestmark = pytest.mark.numeric


def refused(error: type[AttnvizError], told: str, run: Callable[[], object]) -> AttnvizError:
    """The error of one line that a call raises."""
    with pytest.raises(error, match=told) as raised:
        run()
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.fixture
def llama(tiny: Tiny) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny("llama"))


@pytest.fixture(scope="module")
def tokenizer(tiny: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(tiny("llama"))


@pytest.fixture(scope="module")
def ids(tokenizer: Any) -> Tensor:
    return tokenizer(SENTENCE, return_tensors="pt")["input_ids"]


# Wrappers


def parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone, as DistributedDataParallel wants one."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


QUIET = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # other libraries' own


WRAPPERS: list[Callable[[nn.Module], Any]] = [
    torch.compile,
    nn.DataParallel,
    AveragedModel,
    parallel,
    lambda model: nn.DataParallel(torch.compile(AveragedModel(model))),
]


@pytest.mark.parametrize(
    "wrap", WRAPPERS, ids=["compiled", "parallel", "averaged", "distributed", "nested"]
)
@pytest.mark.usefixtures("process_group")
@QUIET
def test_wrappers_that_call_their_model(
    wrap: Callable[[nn.Module], Any], llama: Any, tokenizer: Any
) -> None:
    """The model in a wrapper reads a text or inputs, and so does a module of one's own; nothing is compiled for it."""
    expected = attnviz.capture(SENTENCE, llama, tokenizer=tokenizer)
    for options in ({"text": SENTENCE}, {"inputs": tokenizer(SENTENCE)}):
        found = attnviz.capture(model=wrap(llama), tokenizer=tokenizer, **options)
        assert (found.model, found.text) == ("LlamaForCausalLM", SENTENCE)
        require_close(found.maps[0].weights, torch.from_numpy(expected.maps[0].weights))
    net = build_seeded(make_multihead)
    plain, wrapped = (
        attnviz.capture(model=model, inputs=(SEVEN_VECTORS, SEVEN_VECTORS, SEVEN_VECTORS))
        for model in (net, wrap(net))
    )
    require_close(wrapped.maps[0].weights, torch.from_numpy(plain.maps[0].weights))
    assert wrapped.model == "MultiheadAttention"


class Layered(nn.Module):
    """A layer that was compiled by itself, or a function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.compile(build_seeded(make_multihead))
        self.function = torch.compile(functional.scaled_dot_product_attention)

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return self.function(*[self.layer(x, x, x)[0][:, None]] * 3)


@QUIET
def test_what_was_compiled_in_a_model_runs_as_it_was_written(llama: Any, tokenizer: Any) -> None:
    """A compiled layer, a compiled function, and a model that was compiled in place: all their calls are seen."""
    found = attnviz.capture(model=Layered(), inputs=SEVEN_VECTORS)
    assert sum(len(part.layers) for part in found.maps) == 2
    expected = attnviz.capture(SENTENCE, llama, tokenizer=tokenizer).maps[0].weights
    llama.compile()
    require_close(
        attnviz.capture(SENTENCE, llama, tokenizer=tokenizer).maps[0].weights,
        torch.from_numpy(expected),
    )
    llama.model.layers[1] = torch.compile(llama.model.layers[1])
    require_close(
        attnviz.capture(SENTENCE, llama, tokenizer=tokenizer).maps[0].weights,
        torch.from_numpy(expected),
    )


def adapted(model: nn.Module, config: Any) -> Any:
    """A model with an adapter that changes its attention."""
    import peft

    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(model, config(peft))
        for name, part in wrapped.named_parameters():
            if part.requires_grad:
                part += 0.5 * torch.randn_like(part)
            del name
    return wrapped


ADAPTERS: dict[str, Callable[[Any], Any]] = {
    "lora": lambda peft: peft.LoraConfig(
        target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    ),
    "ia3": lambda peft: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    "adalora": lambda peft: peft.AdaLoraConfig(
        target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM", init_r=4, target_r=2
    ),
    "loha": lambda peft: peft.LoHaConfig(target_modules=["q_proj", "k_proj"]),
}


@QUIET
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_in_the_layers_are_applied(
    name: str, llama: Any, tokenizer: Any, ids: Tensor
) -> None:
    """What is read of a PeftModel is the adapted model, not the one without the adapter; disabled, it is that one."""
    plain = eager(llama, {"input_ids": ids})["self"]
    model = adapted(llama, ADAPTERS[name])
    compiled = torch.compile(model)
    before = state(model), world()
    found = attnviz.capture(SENTENCE, compiled, tokenizer=tokenizer).maps[0].weights
    assert (state(model), world()) == before
    expected = eager(model.base_model.model, {"input_ids": ids})["self"]
    require_close(found, expected)
    assert np.abs(found - plain.numpy()).max() > 0.01
    require_close(attnviz.capture(model=model, inputs={"input_ids": ids}).maps[0].weights, expected)
    with model.disable_adapter():
        require_close(attnviz.capture(SENTENCE, model, tokenizer=tokenizer).maps[0].weights, plain)
    assert (
        attnviz.capture(SENTENCE, model, tokenizer=tokenizer, method="gradient")
        .maps[0]
        .weights.any()
    )


@pytest.mark.exact
@pytest.mark.parametrize(
    "config",
    [
        lambda peft: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        lambda peft: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        lambda peft: peft.LoraConfig(
            target_modules=["q_proj"], alora_invocation_tokens=[5], task_type="CAUSAL_LM"
        ),
    ],
    ids=["prompt", "prefix", "alora"],
)
@QUIET
def test_adapters_outside_of_the_layers_are_refused(
    config: Any, llama: Any, tokenizer: Any
) -> None:
    """Tokens before the text, keys before its keys, or layers that wait for a token: the model in it lacks these."""
    model = adapted(llama, config)
    refused(
        ModelError,
        "outside of the model's layers",
        lambda: attnviz.capture("a", model, tokenizer=tokenizer),
    )


@QUIET
def test_sentence_encoders(minilm: Path) -> None:
    """The model in a SentenceTransformer, with its tokenizer unless another is given; in a CrossEncoder; compiled."""
    library = importlib.import_module("sentence_transformers")
    expected = attnviz.capture(SENTENCE, str(minilm)).maps[0]
    encoder = library.SentenceTransformer(str(minilm), device="cpu")
    module = encoder[0]
    for model in (encoder, torch.compile(encoder), module):
        found = attnviz.capture(SENTENCE, model)
        require_close(found.maps[0].weights, torch.from_numpy(expected.weights))
        assert [token.text for token in found.maps[0].keys] == [
            token.text for token in expected.keys
        ]
        assert (found.model, found.notes) == ("BertModel", ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        crossing = library.CrossEncoder(str(minilm), device="cpu")
    pair = attnviz.capture("one", crossing, pair="two").maps[0]
    assert {token.segment for token in pair.keys} == {0, 1}
    prompted = library.SentenceTransformer(
        str(minilm), device="cpu", prompts={"q": "query: "}, default_prompt_name="q"
    )
    assert (
        "puts the prompt 'query: ' before each text"
        in attnviz.capture(SENTENCE, prompted).notes[-1]
    )
    several = library.SentenceTransformer(modules=[module, copy.deepcopy(module)], device="cpu")
    refused(ModelError, "holds 2 transformers models", lambda: attnviz.capture("a", several))


def test_pipelines(tiny: Tiny, llama: Any, tokenizer: Any) -> None:
    """The model and the tokenizer of a pipeline."""
    made = pipeline("text-generation", model=llama, tokenizer=tokenizer, device="cpu")
    expected = attnviz.capture(SENTENCE, llama, tokenizer=tokenizer).maps[0].weights
    require_close(attnviz.capture(SENTENCE, made).maps[0].weights, torch.from_numpy(expected))
    require_close(
        attnviz.capture(SENTENCE, tiny("llama")).maps[0].weights, torch.from_numpy(expected)
    )  # a Path too


class Classifier(nn.Module):
    """A transformers model in a module of one's own."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Ids to logits."""
        return self.encoder(input_ids=input_ids).logits[:, -1]


def test_objects_that_are_no_models(llama: Any, tokenizer: Any, ids: Tensor) -> None:
    """A class, a function, weights, nothing; a text that is none; a tokenizer that is none: what is to be given."""
    for model in (type(llama), torch.relu, llama.state_dict(), None, tokenizer, 3):
        for options in ({"text": "a"}, {"inputs": ids}):
            refused(
                UsageError,
                "model= is (of type|the class) .*: give a name",
                partial_capture(model, **options),
            )
    for name in ("text", "pair", "target", "target_token"):
        for wrong in (["a"], b"a", 3):
            options = {"text": "a", name: wrong}
            refused(
                UsageError,
                f"{name}= is of type {type(wrong).__name__}",
                partial_capture("builtin", **options),
            )
    for wrong in ("bert-base", tokenizer.backend_tokenizer, {"a": 1}):
        refused(
            UsageError, "tokenizer= is of type", partial_capture(llama, text="a", tokenizer=wrong)
        )
    module = Classifier(llama)
    refused(UsageError, r"transformers model in it, \.encoder", partial_capture(module, text="a"))
    require_close(
        attnviz.capture(model=module, inputs=ids).maps[0].weights,
        eager(llama, {"input_ids": ids})["self"],
    )


def partial_capture(model: Any, **options: Any) -> Callable[[], object]:
    return lambda: attnviz.capture(model=model, **options)


# Inputs


class Foreign:
    """An array of another library."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """See NumPy."""
        del copy
        return self.array.astype(dtype or self.array.dtype)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "array": lambda array: array,
    "batchless": lambda array: array[0],
    "lists": lambda array: {"input_ids": array.tolist()},
    "nested": lambda array: array.tolist(),
    "encoding": lambda array: BatchEncoding(
        {"input_ids": array, "attention_mask": np.ones_like(array)}
    ),
    "user": lambda array: UserDict(input_ids=array[0].tolist()),
    "unsigned": lambda array: {
        "input_ids": array.astype(np.uint16),
        "attention_mask": np.ones(array.shape, bool),
    },
    "tuple": lambda array: (array[0].tolist(), np.ones_like(array[0])),
    "reversed": lambda array: array[:, ::-1][:, ::-1],
    "foreign": lambda array: Foreign(array),
    "tensors": lambda array: {"input_ids": [torch.from_numpy(array[0])]},
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_as_arrays_and_lists(form: str, llama: Any, tokenizer: Any, ids: Tensor) -> None:
    """Of any whole type, with or without the axis of the batch, by place or by name."""
    found = attnviz.capture(model=llama, inputs=FORMS[form](ids.numpy()), tokenizer=tokenizer)
    require_close(found.maps[0].weights, eager(llama, {"input_ids": ids})["self"])
    assert found.text == SENTENCE


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_embeddings_as_arrays(dtype: Any, llama: Any, ids: Tensor) -> None:
    """Numbers of NumPy's types come in the model's type, with or without the axis of the batch."""
    vectors = llama.get_input_embeddings()(ids).detach()
    rounded = vectors.numpy().astype(dtype)
    expected = eager(llama, {"inputs_embeds": torch.from_numpy(rounded).float()})["self"]
    for value in (rounded, rounded[0], rounded.tolist()):
        require_close(
            attnviz.capture(model=llama, inputs={"inputs_embeds": value}).maps[0].weights, expected
        )


@pytest.mark.parametrize(
    "value",
    [
        SEVEN_VECTORS.numpy(),
        SEVEN_VECTORS.numpy().astype(np.float64),
        SEVEN_VECTORS.tolist(),
        [SEVEN_VECTORS.tolist()],
        {"x": SEVEN_VECTORS.tolist()},
        (SEVEN_VECTORS[0].numpy(),),
        BatchEncoding({"x": SEVEN_VECTORS.numpy()}),
        UserDict(x=Foreign(SEVEN_VECTORS.numpy())),
    ],
    ids=["array", "doubles", "nested", "argument", "named", "batchless", "encoding", "foreign"],
)
@pytest.mark.parametrize("make", [Einsum, lambda: Around(build_seeded(make_multihead))])
def test_arrays_for_modules(value: Any, make: Callable[[], Any]) -> None:
    """A module of one's own gets tensors, in the type of its parameters."""
    net = make()
    if value.__class__ is tuple and isinstance(net, Einsum):
        value = (value[0][None],)
    require_close(
        attnviz.capture(model=net, inputs=value).maps[0].weights[0],
        net.weights(SEVEN_VECTORS).detach().reshape(-1, 7, 7),
    )


class Around(nn.Module):
    """Self-attention of one argument."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def weights(self, x: Tensor) -> Tensor:
        """(batch, head, query, key)."""
        return self.layer(x, x, x, average_attn_weights=False)[1]

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        return self.layer(x, x, x)[0]


class FromNumPy(nn.Module):
    """It takes arrays and plain lists, and no tensors."""

    def forward(self, x: np.ndarray, lengths: list[int]) -> Tensor:
        """Sequence to sequence."""
        assert isinstance(lengths, list)
        x = torch.from_numpy(x)[:, : lengths[0]]
        return functional.scaled_dot_product_attention(x, x, x)


def test_modules_that_take_arrays_get_them() -> None:
    """What a module takes as it is, is left as it is; how many texts there are is told all the same."""
    array = SEVEN_VECTORS.numpy()
    found = attnviz.capture(model=FromNumPy(), inputs={"x": array, "lengths": [5]}).maps[0]
    require_close(
        found.weights[0],
        torch.softmax(SEVEN_VECTORS[:, :5] @ SEVEN_VECTORS[:, :5].mT / DIM**0.5, -1),
    )
    several = np.concatenate([array, array, array])
    refused(InputError, "3 texts", partial_capture(FromNumPy(), inputs=(several, [5])))


@pytest.mark.exact
@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ([[5, 6, 7], [1, 1, 1]], "may be one array or several arguments"),
        ([[5, 6], [7]], "may be one array or several arguments"),
        ({"input_ids": np.array(["a", "b"])}, "holds values of type <U1"),
        ({"input_ids": [[1, 2], [3]]}, "lists that make no tensor"),
        ({"input_ids": [None, 2]}, "holds values of type object"),
        ({"input_ids": np.ones((2, 5), int)}, "hold 2 texts"),
        ({"input_ids": []}, "holds no tokens"),
        ({"input_ids": torch.ones(1, 0, dtype=torch.long)}, "holds no tokens"),
        (torch.tensor(3), "input_ids has 0 axes, not 2"),
        (np.ones((1, 2, 3), int), r"input_ids has 3 axes, not 2: its shape is \(1, 2, 3\)"),
        ({"inputs_embeds": np.ones(3)}, "inputs_embeds has 1 axes, not 3"),
        ({"input_ids": 3, "attention_mask": [1]}, "input_ids is of type int"),
        ("a text", "inputs= is of type str"),
        (5, "inputs= is of type int"),
        ({5}, "inputs= is of type set"),
        (
            (torch.ones(1, 5, dtype=torch.long),) * 40,
            "holds 40 arguments, more than LlamaForCausalLM takes",
        ),
        (
            {"input_idz": torch.ones(1, 5, dtype=torch.long)},
            "no input named 'input_idz'; its inputs are input_ids, ",
        ),
        (
            {"input_ids": torch.ones(1, 5, dtype=torch.long), "attention_masks": torch.ones(1, 5)},
            "no input named 'attention_masks'",
        ),
        (
            {"input_ids": torch.ones(1, 5, dtype=torch.long), "x": 1, "y": None},
            "no input named 'x', 'y'; its inputs are input_ids, attention_mask",
        ),
    ],
)
def test_inputs_that_are_none(inputs: Any, told: str, llama: Any) -> None:
    """Lists of two meanings, no numbers, no tokens, several texts, names that the model would leave out silently."""
    refused(InputError, told, partial_capture(llama, inputs=inputs))


@pytest.mark.parametrize("name", ["llama", "gpt_neo", "gpt2"])
def test_options_among_inputs(name: str, tiny: Tiny, tokenizer: Any, ids: Tensor) -> None:
    """What changes only what a model returns changes nothing here."""
    model = AutoModelForCausalLM.from_pretrained(tiny(name))
    options = {
        "use_cache": True,
        "labels": ids,
        "return_dict": False,
        "output_hidden_states": True,
        "past_key_values": None,
    }
    found = attnviz.capture(model=model, inputs={"input_ids": ids, **options}, tokenizer=tokenizer)
    require_close(found.maps[0].weights, eager(model, {"input_ids": ids})["self"])
    lists = {"input_ids": ids[0].tolist(), "labels": ids[0].tolist(), "return_dict": False}
    require_close(
        attnviz.capture(model=model, inputs=lists).maps[0].weights,
        eager(model, {"input_ids": ids})["self"],
    )


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_need_both_texts(name: str, tiny: Tiny) -> None:
    """Labels tell what the decoder reads; without it, maps could not be told apart, even where a model would run."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny(name))
    text, labels = torch.arange(5, 11)[None], torch.arange(20, 27)[None]
    decoder = model.prepare_decoder_input_ids_from_labels(labels=labels)
    expected = eager(model, {"input_ids": text, "decoder_input_ids": decoder})
    for inputs in (
        {"input_ids": text, "labels": labels},
        {"input_ids": text.numpy(), "labels": labels[0].tolist()},
    ):
        for part in attnviz.capture(model=model, inputs=inputs).maps:
            require_close(part.weights, expected[part.kind])
    refused(
        InputError, "holds no decoder_input_ids", partial_capture(model, inputs={"input_ids": text})
    )
    refused(InputError, "holds no decoder_input_ids", partial_capture(model, inputs=text))


# Caches


PAST = "cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values"


def snapshot(cache: Any) -> list[Any]:
    return [
        (layer.keys.clone(), layer.values.clone(), cache.get_seq_length()) for layer in cache.layers
    ]


def kept(cache: Any, before: list[Any]) -> bool:
    return all(
        torch.equal(layer.keys, keys)
        and torch.equal(layer.values, values)
        and cache.get_seq_length() == length
        for layer, (keys, values, length) in zip(cache.layers, before, strict=True)
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", ["graph", "dynamic", "static"])
@pytest.mark.parametrize("name_of_cache", sorted({"past_key_values", PAST}))
def test_a_text_after_what_a_cache_holds(
    name: str, kind: str, name_of_cache: str, tiny: Tiny, tokenizer: Any, ids: Tensor
) -> None:
    """Queries are the tokens of the text, keys all tokens, as in a window of the whole; the cache stays as it was."""
    model = AutoModelForCausalLM.from_pretrained(tiny(name))
    whole = eager(model, {"input_ids": ids})["self"]
    cut, total = 7, ids.shape[1]
    cache = (
        StaticCache(config=model.config, max_cache_len=20)
        if kind == "static"
        else DynamicCache(config=model.config)
    )
    with torch.set_grad_enabled(kind == "graph"):
        model(input_ids=ids[:, :cut], **{PAST: cache}, use_cache=True)
    before = snapshot(cache)
    inputs = {"input_ids": ids[:, cut:], name_of_cache: cache}
    for _ in range(2):
        found = attnviz.capture(model=model, inputs=inputs)
        assert kept(cache, before)
        for part in found.maps:
            assert part.kind == "self"
            assert part.query_places == tuple(range(cut, total))
            assert part.key_places == tuple(range(part.key_places[0], total))
            assert [token.text for token in part.queries] == list(map(str, range(cut, total)))
            assert [token.text for token in part.keys] == list(map(str, part.key_places))
            require_close(part.weights, whole[list(part.layers)][:, :, cut:, part.key_places[0] :])
        assert any(
            f"queries {cut}-{total - 1} follow the {cut} tokens" in note for note in found.notes
        )
    spelt = attnviz.capture(model=model, inputs=inputs, tokenizer=tokenizer).maps[0]
    named = attnviz.capture(SENTENCE, model, tokenizer=tokenizer).maps[0].queries[cut:]
    assert [token.text for token in spelt.queries] == [token.text for token in named]
    assert attnviz.capture(model=model, inputs=inputs, method="norm").maps[0].kind == "self"
    assert str(cut) in str(attnviz.show(found))


def test_an_empty_cache_is_not_filled(llama: Any, ids: Tensor) -> None:
    """It is as if there were none, and it stays empty."""
    cache = DynamicCache(config=llama.config)
    found = attnviz.capture(
        model=llama, inputs={"input_ids": ids, "past_key_values": cache, "use_cache": True}
    )
    require_close(found.maps[0].weights, eager(llama, {"input_ids": ids})["self"])
    assert cache.get_seq_length() == 0
    assert found.maps[0].statistics is not None


@pytest.mark.exact
def test_caches_that_are_not_read(llama: Any, ids: Tensor, tiny: Tiny) -> None:
    """Tuples, statistics of a part, a cache of an encoder-decoder, a cache without a text, rollout."""
    cache = llama(input_ids=ids[:, :5], use_cache=True).past_key_values
    inputs = {"input_ids": ids[:, 5:], "past_key_values": cache}
    legacy = {**inputs, "past_key_values": ((torch.zeros(1, 2, 5, 8),) * 2,) * 3}
    refused(InputError, "past_key_values is of type tuple", partial_capture(llama, inputs=legacy))
    for keep in ("tiles", "statistics", "edges"):
        refused(UsageError, "of a whole text", partial_capture(llama, inputs=inputs, keep=keep))
    alone = {"past_key_values": cache, "attention_mask": torch.ones(1, 6)}
    refused(InputError, "needs input_ids", partial_capture(llama, inputs=alone))
    refused(InputError, "here is a part", partial_capture(llama, inputs=inputs, method="rollout"))
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny("t5"))
    both = {"input_ids": ids, "decoder_input_ids": ids[:, :3]}
    held = model(**both, use_cache=True).past_key_values
    refused(
        InputError,
        "of an encoder-decoder",
        partial_capture(model, inputs={**both, "past_key_values": held}),
    )


class Memory:
    """A cache of one's own."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []


class Growing(nn.Module):
    """It reads, and writes to, what it was given."""

    def forward(self, x: Tensor, memory: Any) -> Tensor:
        """Sequence to sequence."""
        rows = (
            memory.rows
            if isinstance(memory, Memory)
            else memory["rows"]
            if isinstance(memory, dict)
            else memory
        )
        rows.append(x)
        x += 1  # the caller's own tensor
        keys = torch.cat(list(rows), 1)
        return functional.scaled_dot_product_attention(x, keys, keys)


@pytest.mark.parametrize("make", [list, lambda: {"rows": []}, Memory])
def test_modules_do_not_change_what_they_are_given(make: Callable[[], Any]) -> None:
    """Lists, mappings, objects, and tensors that are written to in place: each run reads what was handed over."""
    x, memory = SEVEN_VECTORS.clone(), make()
    rows = (
        memory.rows
        if isinstance(memory, Memory)
        else memory["rows"]
        if isinstance(memory, dict)
        else memory
    )
    rows.append(SEVEN_VECTORS.clone())
    attended = Growing()
    part = attnviz.capture(model=attended, inputs=(x, memory)).maps[0]
    assert part.weights.shape == (1, 1, 7, 14)
    assert torch.equal(x, SEVEN_VECTORS)
    assert len(rows) == 1


# Arrays from elsewhere


def outputs(model: Any, ids: Tensor) -> Any:
    model.set_attn_implementation("eager")
    return model(input_ids=ids, output_attentions=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_attentions_as_the_library_returns_them(
    dtype: torch.dtype, llama: Any, ids: Tensor, tokenizer: Any
) -> None:
    """A tuple of tensors of the layers, (1, head, query, key), with a graph, in any type; arrays; a list."""
    attentions = tuple(part.to(dtype) for part in outputs(llama, ids).attentions)
    assert attentions[0].requires_grad
    expected = torch.cat(attentions).detach().float()
    arrays = [part.detach().double().numpy() for part in attentions]
    for weights in (
        attentions,
        list(attentions),
        arrays,
        tuple(arrays),
        torch.stack(attentions),
        np.stack(arrays),
    ):
        part = attnviz.from_arrays(weights, tokens=tokenizer.convert_ids_to_tokens(ids[0])).maps[0]
        np.testing.assert_array_equal(part.weights, expected.numpy())
        assert part.layers == (0, 1, 2)
    heads = attnviz.from_arrays([part[0] for part in attentions]).maps[0]
    np.testing.assert_array_equal(heads.weights, expected.numpy())
    one = attnviz.from_arrays(attentions[1]).maps[0]
    np.testing.assert_array_equal(one.weights[0], expected[1].numpy())
    masked = attnviz.from_arrays(
        attentions, visible=torch.ones(ids.shape[1], ids.shape[1]).tril().bool()
    ).maps[0]
    assert not masked.visible[0, 0, 0, 1]
    with torch.inference_mode():
        assert attnviz.from_arrays(attentions).maps


def test_other_forms_of_arrays(tiny: Tiny) -> None:
    """Cross-attention, sparse tensors, arrays of other libraries, layers by number, nested lists of arrays."""
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny("t5"))
    model.set_attn_implementation("eager")
    given = model(
        input_ids=torch.arange(5)[None],
        decoder_input_ids=torch.arange(3)[None],
        output_attentions=True,
    )
    part = attnviz.from_arrays(given.cross_attentions).maps[0]
    assert (part.kind, part.weights.shape[2:]) == ("cross", (3, 5))
    even = torch.full((2, 4, 4), 0.25)
    for form in (
        even.to_sparse(),
        Foreign(even.numpy()),
        [list(part.numpy()) for part in even],
        even.tolist(),
    ):
        np.testing.assert_array_equal(attnviz.from_arrays(form).maps[0].weights[0], even.numpy())
    numbered = attnviz.from_arrays(
        even, heads=np.arange(3, 5), layers=torch.tensor([7]), tokens=np.array(list("abcd"))
    )
    assert (numbered.maps[0].layers, numbered.maps[0].heads) == ((7,), (3, 4))


EVEN = torch.full((1, 2, 4, 4), 0.25)


@pytest.mark.parametrize(
    ("weights", "options", "told"),
    [
        ((EVEN.expand(2, -1, -1, -1),) * 3, {}, "holds 2 texts"),
        ([np.full((3, 2, 4, 4), 0.25)] * 2, {}, "holds 3 texts"),
        ((EVEN, None), {}, "layer 1 of weights= is None: give outputs.attentions"),
        ((), {}, "holds no layers"),
        (None, {}, "weights= is None: give outputs.attentions"),
        (
            (EVEN, EVEN[:, :1]),
            {},
            r"layers 0 and 1 of weights= have the shapes \(1, 2, 4, 4\) and \(1, 1, 4, 4\)",
        ),
        (((EVEN, EVEN), (EVEN, EVEN)), {}, r"a sequence of steps, .* weights\[0\]"),
        ({"attentions": (EVEN,)}, {}, "a mapping of attentions"),
        (EVEN.to("meta"), {}, "these are no array"),
        ([[0.5, 0.5], [1.0]], {}, "these are no array"),
        ("a", {}, "not numbers"),
        (object(), {}, "not numbers"),
        (EVEN, {"tokens": "abcd"}, "tokens= is of type str"),
        (EVEN, {"tokens": 5}, "tokens= is of type int"),
        (EVEN, {"layers": torch.tensor(3)}, "layers= holds one value"),
        (EVEN, {"visible": [[1, 2], [3]]}, "these are no array"),
        (EVEN, {"visible": EVEN}, "booleans"),
    ],
)
def test_arrays_that_are_none(weights: Any, options: dict[str, Any], told: str) -> None:
    """Several texts, layers that are missing or differ, steps of a generation, the whole outputs: one line."""
    refused(InputError, told, lambda: attnviz.from_arrays(weights, **options))


# Lone surrogates


SURROGATE = "a \ud800 b"


@pytest.mark.parametrize(
    "run",
    [
        lambda path: attnviz.capture(SURROGATE),
        lambda path: attnviz.capture("a", pair=SURROGATE),
        lambda path: attnviz.capture("a", target=SURROGATE),
        lambda path: attnviz.capture("a", method="gradient", target_token=SURROGATE),
        lambda path: attnviz.capture(SURROGATE, path),
        lambda path: attnviz.from_arrays(EVEN, tokens=["a", "\udc00", "c", "d"]),
        lambda path: attnviz.from_arrays(
            EVEN, queries=list("abcd"), keys=["a", "b", "c", "d\ud9ff"]
        ),
        lambda path: load_model(path).capture(Prompt(SURROGATE), Request()),
        lambda path: load_model().respond(Prompt("a"), [Intervention()], Target("\udcff")),
        lambda path: load_model().capture(Prompt("a"), Request(query=TokenReference("\udcff"))),
        lambda path: segments.parse_segments('[{"name": "\\ud800", "start": 0, "end": 1}]'),
        lambda path: segments.parse_segments("0:1 \udcff"),
        lambda path: load_model(path).capture(
            Prompt('[{"role": "user", "content": "\\ud800"}]', chat=True), Request()
        ),
    ],
)
def test_lone_surrogates_are_no_text(run: Callable[[str], object], tiny: Tiny) -> None:
    """Half of a surrogate pair in any text: one line, whichever library would read it."""
    refused(InputError, "is not UTF-8", lambda: run(str(tiny("chat"))))


@pytest.mark.exact
@pytest.mark.parametrize(
    "options",
    [
        ["\udcff"],
        ["a", "--pair", "\udcff"],
        ["a", "--target", "\udcff"],
        ["a", "--knock-out", "\udcff->a"],
        ["a", "--token", "\udcff"],
        ["a", "--weights", "gradient", "--target-token", "\udcff"],
        ["--chat", '[{"role": "user", "content": ["\\udcff"]}]'],
    ],
)
def test_lone_surrogates_on_the_command_line(
    options: list[str], call: Callable[..., subprocess.CompletedProcess[str]], tiny: Tiny
) -> None:
    """Exit code 4, and one line."""
    done = call("show", *options, "-m", tiny("chat"))
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (4, 1, "")
    assert "is not UTF-8" in done.stderr


# Gradients


@pytest.mark.parametrize("method", ["gradient", "chefer"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "builtin"])
def test_gradients_where_torch_keeps_none(method: Any, name: str, tiny: Tiny) -> None:
    """In inference mode and without gradients, of a loaded model and of one by name, as outside."""
    model: Any = name if name == "builtin" else str(tiny(name))
    options: dict[str, Any] = {"method": method}
    expected = torch.from_numpy(attnviz.capture(SENTENCE, model, **options).maps[0].weights)
    loaded, tokenizer = model, None
    if name != "builtin":
        loaded, tokenizer = (
            AutoModelForCausalLM.from_pretrained(model),
            AutoTokenizer.from_pretrained(model),
        )
    for context in (torch.inference_mode, torch.no_grad):
        with context():
            require_close(attnviz.capture(SENTENCE, model, **options).maps[0].weights, expected)
            require_close(
                attnviz.capture(SENTENCE, loaded, tokenizer=tokenizer, **options).maps[0].weights,
                expected,
            )
            assert torch.is_inference_mode_enabled() == (context is torch.inference_mode)
    with torch.inference_mode():
        require_close(
            attnviz.capture(SENTENCE, "builtin", dtype="float64", **options).maps[0].weights,
            expected,
        ) if (name == "builtin") else None


def made(part: str, folder: Path) -> Any:
    """A model of which some was made in inference mode."""
    with torch.inference_mode(part == "all"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        if part == "parameter":
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())
        elif part == "buffer":
            model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.clone()
    return model


@pytest.mark.exact
@pytest.mark.parametrize("part", ["all", "parameter", "buffer"])
@pytest.mark.parametrize("method", ["gradient", "chefer"])
def test_models_made_in_inference_mode(part: str, method: Any, tiny: Tiny, tokenizer: Any) -> None:
    """They have no gradients, which is said; their attention is read."""
    model = made(part, tiny("llama"))
    for mode in (True, False):
        with torch.inference_mode(mode):
            told = "made under torch.inference_mode"
            refused(
                UsageError,
                told,
                partial_capture(model, text="a b", tokenizer=tokenizer, method=method),
            )
            assert attnviz.capture("a b", model, tokenizer=tokenizer).maps


# Captures in captures


class Nested(nn.Module):
    """Its own code captures."""

    def __init__(self, inner: Callable[[], object]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Sequence to sequence."""
        self.inner()
        return functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.exact
@pytest.mark.parametrize("inner", ["builtin", "module", "library", "itself", "losses"])
def test_captures_in_captures(inner: str, llama: Any, ids: Tensor) -> None:
    """A module whose code captures is refused in a line, and everything is left as it was; outside it goes on."""
    net: Any = None
    inside: dict[str, Callable[[], object]] = {
        "builtin": lambda: attnviz.capture("a b"),
        "module": lambda: attnviz.capture(model=Einsum(), inputs=SEVEN_VECTORS),
        "library": lambda: attnviz.capture(model=llama, inputs=ids),
        "itself": lambda: attnviz.capture(model=net, inputs=SEVEN_VECTORS),
        "losses": lambda: load_model().losses(np.ones((1, 5), np.int64)),
    }
    net = Nested(inside[inner])
    before = state(net), world()
    told = "attnviz was called while it runs Nested"
    refused(UsageError, told, partial_capture(net, inputs=SEVEN_VECTORS))
    assert (state(net), world()) == before
    if inner != "itself":
        net(SEVEN_VECTORS)
    assert attnviz.capture(model=Einsum(), inputs=SEVEN_VECTORS).maps


@pytest.mark.parametrize("caught", [True, False])
def test_hooks_that_capture(caught: bool, llama: Any, tokenizer: Any, ids: Tensor) -> None:
    """A hook of a model of the library; where it catches the refusal, the outer capture is what it is without."""
    expected = eager(llama, {"input_ids": ids})["self"]
    raised: list[Exception] = []

    def hook(*_: Any) -> None:
        try:
            attnviz.capture(model=Einsum(), inputs=SEVEN_VECTORS)
        except AttnvizError as error:
            raised.append(error)
            if not caught:
                raise

    llama.model.layers[0].register_forward_hook(hook)
    before = state(llama), world()
    if caught:
        require_close(
            attnviz.capture(SENTENCE, llama, tokenizer=tokenizer).maps[0].weights, expected
        )
        assert raised
    else:
        refused(UsageError, "while it runs LlamaForCausalLM", partial_capture(llama, inputs=ids))
    assert (state(llama), world()) == before


# Chats


STRINGS = "{% for part in messages %}<{{ part['role'] }}>{{ part['content'] + '\\n' }}{% endfor %}"
TRIMMED = "{% for part in messages %}<{{ part['role'] }}>{{ part['content'] | trim }}\n{% endfor %}"
DUMPED = (
    "{% for part in messages %}<{{ part['role'] }}>{{ part['content'] | tojson }}\n{% endfor %}"
)
SILENT = (
    "{% for part in messages %}<{{ part['role'] }}>"
    "{% if part['content'] is string %}{{ part['content'] }}{% endif %}\n{% endfor %}"
)
PARTS = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}[{{ part['text'] }}]{% endfor %}{% endif %}\n{% endfor %}"
)
ONLY_PARTS = (
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% for part in message['content'] %}[{{ part['text'] }}]{% endfor %}\n{% endfor %}"
)


def text_part(text: str, kind: str = "text") -> dict[str, str]:
    return {"type": kind, "text": text}


@pytest.mark.parametrize("template", [None, STRINGS, TRIMMED, DUMPED, SILENT, PARTS, ONLY_PARTS])
@pytest.mark.parametrize(
    "content",
    [
        [text_part("Hi")],
        [text_part("Hi"), text_part("you there")],
        ["Hi", text_part("you", "input_text")],
    ],
)
def test_contents_of_parts(template: str | None, content: list[Any], tiny: Tiny) -> None:
    """A template that takes parts gets them, one that takes strings gets lines; each message is a segment."""
    model, tokenizer = (
        kind.from_pretrained(tiny("chat")) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    tokenizer.chat_template = template or tokenizer.chat_template
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [text_part("Well")]},
    ]
    found = HuggingFace("toy", model, tokenizer).capture(
        Prompt(json.dumps(messages), chat=True), Request()
    )
    takes = template in (PARTS, ONLY_PARTS)
    texts = [part if isinstance(part, str) else part["text"] for part in content]
    said = "][".join(texts) if takes else "\n".join(texts)
    if template == DUMPED:
        said = json.dumps(said)[1:-1]
    assert said in found.text
    assert "type" not in found.text
    assert [segment.name for segment in found.segments] == ["user", "assistant"]
    spans = [found.text[segment.start : segment.end] for segment in found.segments]
    assert all(text in spans[0] for text in texts)
    assert "Well" in spans[1]
    assert "Hi" not in spans[1]
    if template != DUMPED:
        assert spans == [said, "Well"]
    joined = not takes and len(texts) > 1
    assert [note for note in found.notes if "takes no lists of parts" in note] == (
        ["the chat template of toy takes no lists of parts: lines join them"] if joined else []
    )


@pytest.mark.exact
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"type": "image", "url": "x"}], "message 0 has a part of type 'image'"),
        (
            [text_part("a"), {"type": "input_audio", "input_audio": {}}],
            "part of type 'input_audio'",
        ),
        ([{"type": "text"}], "part of type 'text'"),
        ([{"text": 3}], "part of type None"),
        ([3], "part of type int"),
        ([["a"]], "part of type list"),
        (3, "content of message 0 is of type int"),
        ({"type": "text", "text": "a"}, "content of message 0 is of type dict"),
    ],
)
def test_parts_that_are_no_text(content: Any, told: str, tiny: Tiny) -> None:
    """Pictures, sounds, numbers: one line."""
    messages = [{"role": "user", "content": content}]
    model = load_model(str(tiny("chat")))
    refused(
        InputError, told, lambda: model.capture(Prompt(json.dumps(messages), chat=True), Request())
    )


# Failures


class OddError(Exception):
    """What no library knows."""


FAILURES = [
    TypeError("no"),
    KeyError("no"),
    AttributeError("no"),
    AssertionError(),
    NotImplementedError("no"),
    ZeroDivisionError("no"),
    OSError("no"),
    UnicodeDecodeError("utf-8", b"", 0, 1, "no"),
    StopIteration("no"),
    RecursionError("no"),
    OddError("several\nlines\n" + "x" * 999),
    ValueError("no"),
]


def failing(net: nn.Module, place: str, error: BaseException) -> nn.Module:
    """A module of which a part raises."""

    def fail(*_: Any) -> None:
        raise error

    net.get_submodule(place).register_forward_pre_hook(fail)
    return net


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_what_a_model_raises(error: Exception, llama: Any, tokenizer: Any) -> None:
    """Of a module, and of a model of the library that reads a text or inputs: its class, the error, and its cause."""
    net = failing(build_seeded(make_multihead), "out_proj", error)
    net = failing(Around(build_seeded(make_multihead)), "layer", error)
    for model, options in (
        (net, {"inputs": SEVEN_VECTORS}),
        (failing(llama, "model.layers.1", error), {"text": "a b", "tokenizer": tokenizer}),
        (llama, {"inputs": tokenizer("a b")}),
        (llama, {"text": "a b", "tokenizer": tokenizer, "method": "gradient"}),
    ):
        name = f"{type(model).__name__} cannot run on this input: {type(error).__name__}"
        raised = refused(ModelError, name, partial_capture(model, **options))
        assert len(str(raised)) < 400
        assert raised.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_is_no_fault_of_a_model(error: BaseException, llama: Any, tokenizer: Any) -> None:
    """An interruption, an exit and memory that is used up are what they are."""
    with pytest.raises(type(error)):
        attnviz.capture(
            model=failing(Around(build_seeded(make_multihead)), "layer", error),
            inputs=SEVEN_VECTORS,
        )
    with pytest.raises(type(error)):
        attnviz.capture("a b", failing(llama, "model.layers.1", error), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"y": SEVEN_VECTORS}, "cannot be called with inputs=: .*'x'.*; its inputs are x"),
        (
            {"x": SEVEN_VECTORS, "mask": None},
            "unexpected keyword argument 'mask'; its inputs are x",
        ),
        (
            (SEVEN_VECTORS, SEVEN_VECTORS, SEVEN_VECTORS),
            "too many positional arguments; its inputs are x",
        ),
        ((), "missing a required argument: 'x'"),
        (BatchEncoding({"input_ids": [1, 2]}), "'input_ids'|'x'"),
    ],
)
def test_names_that_a_module_does_not_know(inputs: Any, told: str) -> None:
    """What it takes is said."""
    refused(InputError, told, partial_capture(Around(build_seeded(make_multihead)), inputs=inputs))


def test_nested_tensors() -> None:
    """A batch of texts of different lengths, or of one."""
    for texts in ([SEVEN_VECTORS[0]], [SEVEN_VECTORS[0], SEVEN_VECTORS[0, :3]]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nested = torch.nested.nested_tensor(texts)
        refused(
            InputError,
            "nested tensor",
            partial_capture(Around(build_seeded(make_multihead)), inputs=nested),
        )


def test_inputs_that_do_not_fit(llama: Any) -> None:
    """Numbers of another type or width, on no device, ids that are not there: torch's error in one line."""
    net = Around(build_seeded(make_multihead))
    for wrong in (
        SEVEN_VECTORS.double(),
        SEVEN_VECTORS[..., :3],
        SEVEN_VECTORS.to("meta"),
        torch.ones(2),
        3,
        "text",
        np.ones((1, 2, 3)),
    ):
        refused(ModelError, "Around cannot run on this input: ", partial_capture(net, inputs=wrong))
    for wrong in (
        torch.full((1, 5), 10**6),
        torch.ones(1, 5),
        torch.ones(1, 5, dtype=torch.long, device="meta"),
    ):
        refused(
            ModelError,
            "LlamaForCausalLM cannot run on this input: ",
            partial_capture(llama, inputs=wrong),
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict": False},
        {"return_dict": False, "use_cache": False},
        {"output_hidden_states": True},
    ],
)
def test_what_a_config_asks_to_be_returned_changes_nothing(
    settings: dict[str, bool], llama: Any
) -> None:
    """A loaded model whose config asks for tuples, or for more outputs, is read as any other, and keeps its config."""
    ids = {"input_ids": torch.arange(3, 12)[None]}
    model = copy.deepcopy(llama)
    plain = attnviz.capture(model=model, inputs=ids)
    for name, value in settings.items():
        setattr(model.config, name, value)
    again = attnviz.capture(model=model, inputs=ids)
    assert np.array_equal(again.maps[0].weights, plain.maps[0].weights)
    assert all(getattr(model.config, name) == value for name, value in settings.items())
