"""What is captured, by the Python API: kinds of text, of model and of request, and models left as they were found."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BigBirdConfig, BigBirdModel

from attnviz.analysis.statistics import measure_statistics, pool_weights
from attnviz.errors import AttnvizError, InputError, ModelError, UsageError
from attnviz.layer import attention
from attnviz.models import Model, load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.models.prompts import guess_spans
from attnviz.record import Token
from attnviz.request import Edge, Intervention, Prompt, Request
from attnviz.selection import parse_heads, parse_numbers
from tests.architectures import eager
from tests.captures import require_slices
from tests.conftest import SENTENCE, Tiny
from tests.tiny import ASSISTANT, END, USER, load_in_torch, plain_tokenizer
from tests.tolerance import require_close

pytestmark = pytest.mark.numeric

TARGET = "Die naïve Katze 😀 schlief."
PAIR = "It was naïve 😀 there."
WRITERS = "gpt2", "llama", "mistral", "gpt_neo"
Loaded = Callable[[str], Any]


@pytest.fixture(scope="session")
def loaded(tiny: Tiny, minilm: Path) -> Loaded:
    """A model by its name in ``tests.tiny``, or minilm, or builtin; one for all tests, which leave it as it was."""
    made: dict[str, Model] = {}

    def loaded(name: str) -> Model:
        if name not in made:
            if name == "builtin":
                made[name] = load_model()
            else:
                folder = minilm if name == "minilm" else tiny(name)
                made[name] = load_in_torch(folder, writes=name in WRITERS)
        return made[name]

    return loaded


def ids(tokens: Sequence[Token]) -> Tensor:
    """The numbers of tokens as a batch of one text."""
    return torch.tensor([[token.id for token in tokens]])


# Encoder-decoders


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders_have_three_maps(name: str, loaded: Loaded) -> None:
    """Each with its own tokens, and the weights of eager for what the decoder read: a start, then the target."""
    model = loaded(name)
    found = model.capture(Prompt(SENTENCE, target=TARGET), Request())
    encoder, decoder, cross = found.maps
    assert [part.kind for part in found.maps] == ["encoder", "decoder", "cross"]
    text, target = encoder.keys, decoder.keys
    assert (encoder.queries, decoder.queries, cross.queries, cross.keys) == (
        text,
        target,
        target,
        text,
    )
    require_slices(text, SENTENCE)
    require_slices(target, TARGET)
    assert [token.text for token in text if token.special] == [END]
    assert [token.special for token in target] == [True] + [False] * (len(target) - 1)
    assert (found.target, found.notes) == (TARGET, ())
    expected = eager(model.model, {"input_ids": ids(text), "decoder_input_ids": ids(target)})
    for part in found.maps:
        require_close(part.weights, expected[part.kind])
    assert found.fidelity < 1e-5


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_without_a_target_the_model_writes_it(name: str, loaded: Loaded) -> None:
    """Greedily, up to the token that ends it; its tokens are slices of Capture.target, and a note says so."""
    model = loaded(name)
    found = model.capture(Prompt(SENTENCE), Request())
    tokens = found.maps[1].keys
    require_slices(tokens, found.target)
    assert len(tokens) > 10
    assert "--target" in found.notes[0]
    written = model.model.generate(
        ids(found.maps[0].keys), num_beams=1, max_new_tokens=70 if name == "t5" else 39
    )
    read = ids(tokens)[0]
    torch.testing.assert_close(read, written[0, : len(read)])
    again = model.capture(Prompt(SENTENCE, target=found.target), Request()).maps
    assert [part.kind for part in again] == ["encoder", "decoder", "cross"]


def test_a_target_ends_where_the_model_ends_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that ends a target is not read by the decoder, so that it is no query."""
    model = loaded("t5")
    ends = model.capture(Prompt(SENTENCE), Request()).maps[1].keys[3].id
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", ends)
    assert ends not in ids(model.capture(Prompt(SENTENCE), Request()).maps[1].keys)


def test_a_target_without_an_end_is_read_to_its_last_token(loaded: Loaded) -> None:
    """Only the token that ends a target is left out; a tokenizer that adds none loses nothing."""
    model = HuggingFace("t5", loaded("t5").model, plain_tokenizer())
    tokens = model.capture(Prompt("a cat", target=TARGET), Request(kinds=("decoder",))).maps[0].keys
    require_slices(tokens, TARGET)
    assert [token.text for token in tokens if token.special] == [
        "<bos>",
        "<bos>",
    ]  # of the decoder, of the tokenizer


def test_kinds_are_chosen(loaded: Loaded) -> None:
    """One kind that is asked for, or the first that is preferred and there."""
    prompt, model = Prompt(SENTENCE, target=TARGET), loaded("bart")
    assert [part.kind for part in model.capture(prompt, Request(kinds=("decoder",))).maps] == [
        "decoder"
    ]
    assert [
        part.kind for part in model.capture(prompt, Request(preferred=("self", "cross"))).maps
    ] == ["cross"]
    last = model.capture(prompt, Request(layers=parse_numbers("-1"), heads=parse_heads("1"))).maps
    assert [(part.kind, part.layers) for part in last] == [
        ("encoder", (1,)),
        ("decoder", (2,)),
        ("cross", (2,)),
    ]


@pytest.mark.exact
@pytest.mark.parametrize(
    ("name", "prompt", "request_", "error", "told"),
    [
        ("llama", Prompt("x", target="y"), Request(), UsageError, "--target: .* has no decoder"),
        (
            "builtin",
            Prompt("x", target="y"),
            Request(),
            UsageError,
            "--target: builtin reads one plain text",
        ),
        (
            "builtin",
            Prompt("x", pair="y"),
            Request(),
            UsageError,
            "--pair: builtin reads one plain text",
        ),
        (
            "builtin",
            Prompt("x", chat=True),
            Request(),
            UsageError,
            "--chat: builtin reads one plain text",
        ),
        (
            "minilm",
            Prompt("x"),
            Request(kinds=("cross",)),
            UsageError,
            "no cross map here: only self",
        ),
        (
            "t5",
            Prompt("x", target="y"),
            Request(kinds=("self",)),
            UsageError,
            "encoder, decoder, cross",
        ),
        (
            "t5",
            Prompt("x", generate=3),
            Request(),
            UsageError,
            "--generate: .* writes its target by itself",
        ),
        ("minilm", Prompt("x", generate=3), Request(), UsageError, "without the part that writes"),
        (
            "bart",
            Prompt("x", target="y " * 60),
            Request(),
            InputError,
            r"the target has 6\d tokens .* reads 40",
        ),
        ("t5-deep", Prompt("x"), Request(), ModelError, "give one with --target"),
        (
            "gpt2",
            Prompt("x " * 40, generate=40),
            Request(),
            InputError,
            r"reads 64, 40 of them its own.*first 24",
        ),
        ("gpt2", Prompt("x", generate=64), Request(), InputError, "cannot write 64"),
        ("builtin", Prompt("x", generate=512), Request(), InputError, "cannot write 512"),
        ("mamba", Prompt("x"), Request(), ModelError, "no attention"),
    ],
)
def test_what_a_model_cannot_do(
    name: str,
    prompt: Prompt,
    request_: Request,
    error: type[AttnvizError],
    told: str,
    loaded: Loaded,
) -> None:
    """Each is one line that says what is wrong."""
    with pytest.raises(error, match=told) as raised:
        loaded(name).capture(prompt, request_)
    assert "\n" not in str(raised.value)


# Tokens


def test_pairs_keep_their_segments(loaded: Loaded) -> None:
    """Tokens of the second text are slices of it, [UNK] too; its token types reach the model."""
    model = loaded("minilm")
    found = model.capture(Prompt(SENTENCE, pair=PAIR), Request())
    tokens = found.maps[0].keys
    inputs = model.tokenizer(SENTENCE, PAIR, return_tensors="pt")
    require_close(found.maps[0].weights, eager(model.model, inputs)["self"])
    assert [token.segment for token in tokens if not token.special] == [0] * 11 + [1] * 6
    require_slices(tokens, SENTENCE, PAIR)
    assert "😀" in [token.text for token in tokens]
    assert [token.text for token in tokens if token.special] == ["[CLS]", "[SEP]", "[SEP]"]
    assert found.pair == PAIR
    del inputs["token_type_ids"]
    assert np.abs(found.maps[0].weights - eager(model.model, inputs)["self"].numpy()).max() > 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello, naïve 😀", f"<bos>{USER}hello, naïve 😀\n{ASSISTANT}"),
        (
            json.dumps([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]),
            f"<bos>{USER}hi\n{ASSISTANT}ho\n{ASSISTANT}",
        ),
        ("[this] is a text", f"<bos>{USER}[this] is a text\n{ASSISTANT}"),
        ('{"role": "user"}', f'<bos>{USER}{{"role": "user"}}\n{ASSISTANT}'),
    ],
)
def test_chats_go_through_the_template(text: str, expected: str, loaded: Loaded) -> None:
    """A text is one message, JSON several; tokens are slices of what came of it, and marks of roles are special."""
    found = loaded("chat").capture(Prompt(text, chat=True), Request())
    tokens = found.maps[0].keys
    assert found.text == expected
    assert [token.text for token in tokens if token.special] == re.findall(
        r"<bos>|<\|\w+\|>", expected
    )
    for token in tokens:
        assert token.text == expected[token.start : token.end]


@pytest.mark.parametrize(
    ("name", "prompt", "error", "told"),
    [
        ("chat", Prompt('[{"role": "user"}]', chat=True), InputError, "messages are written"),
        ("chat", Prompt("[1, 2]", chat=True), InputError, "messages are written"),
        ("chat", Prompt("[]", chat=True), InputError, "messages"),
        (
            "chat",
            Prompt('[{"role": "judge", "content": "no"}]', chat=True),
            InputError,
            "user and assistant only",
        ),
        ("chat", Prompt("a", pair="b", chat=True), UsageError, "--pair"),
        ("llama", Prompt("hello", chat=True), UsageError, "no chat template"),
    ],
)
def test_chats_that_cannot_be(
    name: str, prompt: Prompt, error: type[AttnvizError], told: str, loaded: Loaded
) -> None:
    """JSON that is no messages, a role that the template refuses, no template: one line each."""
    with pytest.raises(error, match=told) as raised:
        loaded(name).capture(prompt, Request())
    assert "\n" not in str(raised.value)


@pytest.mark.exact
def test_tokenizers_in_python_only_are_read(loaded: Loaded) -> None:
    """Without offsets, tokens are looked for in the text, and a note says so; bytes of one sign share its place."""
    found = loaded("bytes").capture(Prompt("naïve 😀 cat"), Request())
    tokens = found.maps[0].keys
    require_slices(tokens, "naïve 😀 cat")
    assert [token.text for token in tokens] == [*"naïïve ", *"😀😀😀😀", *" cat", "</s>"]
    assert found.notes == (
        "this tokenizer has no fast version: its tokens were looked for in the text, 6 of 16 were not found",
    )
    both = loaded("byt5").capture(Prompt("a cat", target="eine Katze"), Request())
    require_slices(both.maps[1].keys, "eine Katze")
    pair = loaded("bytes").capture(Prompt("the cat", pair="cat sat"), Request()).maps[0].keys
    assert [token.segment for token in pair if not token.special] == [0] * 7 + [1] * 7
    require_slices(pair, "the cat", "cat sat")


class Pieces(NamedTuple):
    """A tokenizer that only decodes."""

    names: tuple[str, ...]

    def decode(self, numbers: list[int]) -> str:
        """The text of one token."""
        return self.names[numbers[0]]


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (("the", "c", "##at", "<unk>", "sat"), "The cat 😀 sat", ["The", "c", "at", " 😀 ", "sat"]),
        (("na@@", "ive"), "naïve", ["na", "ïve"]),
        (("<unk>",), "ß", ["ß"]),
        (("a", "<unk>"), "a ß", ["a", " ß"]),
        (("", "a"), "a", ["", "a"]),
    ],
)
def test_what_is_not_found_stands_between_its_neighbours(
    pieces: tuple[str, ...], text: str, expected: list[str]
) -> None:
    """A token that is not in the text, an unknown word for example, is what stands where it must be."""
    numbers = range(len(pieces))
    spans, _, note = guess_spans(Pieces(pieces), numbers, [False] * len(pieces), [text])
    assert [text[start:stop] for start, stop in spans] == expected
    assert "no fast version" in note


# Generation


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "gpt_neo", "builtin"])
def test_generation_equals_one_forward(name: str, loaded: Loaded) -> None:
    """The rows of prompt and new tokens, made one by one with the cache, are those of a run on the whole text."""
    model = loaded(name)
    found = model.capture(Prompt(SENTENCE, generate=5), Request())
    part = found.maps[0]
    assert part.queries == part.keys
    assert (
        len(part.keys)
        == len(model.capture(Prompt(SENTENCE), Request(parse_numbers("0"))).maps[0].keys) + 5
    )
    assert found.text.startswith(SENTENCE)
    require_slices(part.keys, found.text)
    if name == "builtin":
        whole = model.capture(Prompt(found.text), Request()).maps[0]
        assert whole.keys == part.keys
        require_close(part.weights, whole.weights)
    else:
        expected = eager(model.model, {"input_ids": ids(part.keys)})["self"].numpy()
        require_close(part.weights, expected)
        np.testing.assert_array_equal(np.broadcast_to(part.visible, expected.shape), expected > 0)
        scores = model.model(ids(part.keys)).logits[0]
        assert scores.argmax(-1)[-6:-1].tolist() == ids(part.keys)[0, -5:].tolist()
        assert found.fidelity < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gpt_neo"])
@pytest.mark.parametrize("written", [0, 2, 4])
def test_generation_ends_with_the_text(
    name: str, written: int, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model ends its text before N tokens, there are fewer; the token that ends it has no row."""
    model = loaded(name)
    whole = model.capture(Prompt(SENTENCE, generate=5), Request()).maps[0]
    start = len(whole.keys) - 5
    ends = whole.keys[start + written].id
    before = [token.id for token in whole.keys[start:]].index(
        ends
    )  # random models repeat themselves
    monkeypatch.setattr(model.model.generation_config, "eos_token_id", ends)
    part = model.capture(Prompt(SENTENCE, generate=5), Request()).maps[0]
    assert part.keys == whole.keys[: start + before]
    require_close(part.weights, whole.weights[..., : len(part.keys), : len(part.keys)])


@pytest.mark.parametrize("name", ["mistral", "gpt_neo", "builtin"])
def test_all_that_is_kept_of_a_generation(name: str, loaded: Loaded) -> None:
    """Tiles, statistics, edges and windows are those of the rectangle."""
    model, prompt = loaded(name), Prompt(SENTENCE, generate=5)
    whole = model.capture(prompt, Request()).maps[0]
    tiles = model.capture(prompt, Request(keep="tiles", tiles=5)).maps[0]
    expected = pool_weights(whole.weights, 5)
    require_close(tiles.tiles.mean, expected.mean)
    require_close(tiles.tiles.max, expected.max)
    assert tiles.weights is None
    described = measure_statistics(whole.weights, whole.visible, True)
    found = model.capture(prompt, Request(keep="statistics")).maps[0].statistics
    for part in ("entropy", "received", "sink", "distance", "diagonal", "previous"):
        require_close(getattr(found, part), getattr(described, part))
    edges = model.capture(prompt, Request(keep="edges", strongest=2)).maps[0].edges
    require_close(edges.weights[..., 0], whole.weights.max(-1))
    window = model.capture(prompt, Request(rows=slice(-4, None), columns=slice(3, 9))).maps[0]
    require_close(window.weights, whole.weights[..., -4:, 3:9])
    assert (window.queries, window.keys) == (whole.queries[-4:], whole.keys[3:9])


# Cut edges


def hide(scores: Any, edge: Edge) -> Any:
    """Scores, or a mask to add to them, (..., head, query, key) with minus infinity at the edge."""
    scores = scores.clone() if isinstance(scores, Tensor) else scores.copy()
    scores[..., edge.head, edge.query, edge.key] = -torch.inf
    return scores


def cut_in_interface(patcher: pytest.MonkeyPatch, edge: Edge, module: Any) -> None:
    """In the eager attention of a model behind the library's interface."""
    plain = module.eager_attention_forward

    def cut(
        layer: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> Any:
        if layer.layer_idx == edge.layer:
            zeros = torch.zeros(1, query.shape[1], query.shape[2], key.shape[2])
            mask = hide(zeros if mask is None else zeros + mask, edge)
        return plain(layer, query, key, value, mask, **options)

    patcher.setattr(module, "eager_attention_forward", cut)


def cut_in_gpt_neo(patcher: pytest.MonkeyPatch, edge: Edge) -> None:
    """In the code of GPT-Neo, which nobody else calls."""
    from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

    plain = GPTNeoSelfAttention._attn

    def cut(
        self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Any:
        if self.layer_id == edge.layer:
            zeros = torch.zeros(1, query.shape[1], query.shape[2], key.shape[2])
            mask = hide(zeros if mask is None else zeros + mask, edge)
        return plain(self, query, key, value, mask)

    patcher.setattr(GPTNeoSelfAttention, "_attn", cut)


def cut_in_ours(patcher: pytest.MonkeyPatch, edge: Edge) -> None:
    """In the softmax of our own layer, by counting its calls."""
    plain, calls = attention.softmax, []

    def cut(scores: Any) -> Any:
        calls.append(scores.shape)
        return plain(hide(scores, edge) if len(calls) == edge.layer + 1 else scores)

    patcher.setattr(attention, "softmax", cut)


@pytest.mark.parametrize("name", ["builtin", "minilm", "llama", "gpt_neo"])
def test_an_edge_is_cut(name: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weight is 0 and its row fills up, exactly; layers before are the same, those after what an oracle says."""
    model, edge = loaded(name), Edge("self", 1, 3, 7, 5)
    whole = model.capture(Prompt(SENTENCE), Request()).maps[0]
    found = model.capture(Prompt(SENTENCE), Request(), Intervention((edge,)))
    weights = found.maps[0].weights
    assert found.fidelity is None or found.fidelity < 1e-5
    row = np.delete(whole.weights[1, 3, 7].astype(np.float64), 5)
    assert weights[1, 3, 7, 5] == 0
    require_close(np.delete(weights[1, 3, 7], 5), row / row.sum())
    changed = weights[1] != whole.weights[1]
    changed[3, 7] = False
    assert not changed.any()
    require_close(weights[0], whole.weights[0])
    assert np.abs(weights[2:] - whole.weights[2:]).max() > 1e-4
    if name == "builtin":
        cut_in_ours(monkeypatch, edge)
        require_close(weights, model.capture(Prompt(SENTENCE), Request()).maps[0].weights)
        return
    if name == "gpt_neo":
        cut_in_gpt_neo(monkeypatch, edge)
    else:
        cut_in_interface(monkeypatch, edge, sys.modules[type(model.model).__module__])
    require_close(weights, eager(model.model, {"input_ids": ids(whole.keys)})["self"])


@pytest.mark.parametrize("name", ["builtin", "minilm", "llama"])
def test_a_query_keeps_a_key(name: str, loaded: Loaded) -> None:
    """A cut of all that a query sees is refused, in one head or in all; a cut of all but itself is none."""
    model = loaded(name)
    count = len(model.capture(Prompt("the cat"), Request()).maps[0].keys)
    every = tuple(Edge("self", 0, 1, 0, key) for key in range(count))
    for cuts in (
        every,
        (Edge("self", None, None, count - 1, None), Edge("self", None, None, count - 1, count - 1)),
    ):
        with pytest.raises(UsageError, match="without a key"):
            model.capture(Prompt("the cat"), Request(), Intervention(cuts))
    weights = model.capture(
        Prompt("the cat"), Request(), Intervention((Edge(None, 1, None, count - 1, None),))
    ).maps[0]
    require_close(weights.weights[1, :, -1, -1], 1)
    assert not weights.visible[1, :, -1, :-1].any()


@pytest.mark.parametrize("name", ["builtin", "llama", "gpt_neo"])
@pytest.mark.parametrize(
    "edge", [(9, 0, 0, 0), (0, 9, 0, 0), (0, -1, 0, 0), (0, 0, 99, 0), (0, 0, 0, 99), (0, 0, -1, 0)]
)
def test_edges_that_are_not_there(
    name: str, edge: tuple[int, int, int, int], loaded: Loaded
) -> None:
    """A layer, head, query, key or kind that does not exist cannot be cut, nor can what is yet to be written."""
    with pytest.raises(UsageError, match="to cut"):
        loaded(name).capture(Prompt(SENTENCE), Request(), Intervention((Edge("self", *edge),)))
    with pytest.raises(UsageError, match="cross"):
        loaded(name).capture(
            Prompt(SENTENCE), Request(), Intervention((Edge("cross", 0, 0, 0, 0),))
        )
    with pytest.raises(UsageError, match="--generate"):
        loaded(name).capture(
            Prompt(SENTENCE, generate=2), Request(), Intervention((Edge("self", 0, 0, 0, 0),))
        )


def test_sparse_attention_is_read_and_not_changed() -> None:
    """A model whose attention is read from what the library returns is read with a note; cuts of it are refused."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 4096,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = BigBirdConfig(
        **sizes, intermediate_size=64, attention_type="block_sparse", block_size=4
    )
    config.num_random_blocks = 1
    model = HuggingFace("sparse", BigBirdModel(config).eval(), plain_tokenizer())
    text = " ".join([SENTENCE] * 8)
    assert "sparse" in model.capture(Prompt(text), Request()).notes[0]
    with pytest.raises(ModelError, match="cannot be cut: it is no matrix"):
        model.capture(Prompt(text), Request(), Intervention((Edge(None, 0, None, 9, 3),)))
