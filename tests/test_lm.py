"""The language model: Llama of transformers as the oracle, the shipped weights, training that learns and repeats."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from attnviz.analysis.roles import (
    measure_duplicate_token,
    measure_induction,
    measure_previous_token,
)
from attnviz.errors import InputError, ModelError
from attnviz.lm import corpus, evaluate, run, store, tokenizer
from attnviz.lm.model import (
    ModelConfig,
    compute_next_logits,
    evaluate_layers,
    list_parameter_shapes,
)
from attnviz.lm.train import (
    IGNORED,
    Progress,
    Recipe,
    draw_batch,
    draw_parameters,
    draw_repeated_row,
    set_rates,
    train_parameters,
    widen_vocabulary,
)
from tests.tiny import TINY_CONFIG
from tests.tolerance import close

pytestmark = pytest.mark.numeric


def random_parameters(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * 0.3
        for name, shape in list_parameter_shapes(config).items()
    }


def as_llama(parameters: dict[str, torch.Tensor], config: ModelConfig) -> LlamaForCausalLM:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.dim,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            attn_implementation="eager",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )
    names = {
        "model.embed_tokens.weight": "embedding",
        "lm_head.weight": "embedding",
        "model.norm.weight": "norm",
    }
    for i in range(config.layers):
        for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
            names[f"model.layers.{i}.self_attn.{theirs}_proj.weight"] = (
                f"layers.{i}.attention.{ours}.weight"
            )
        for part in ("gate", "up", "down"):
            names[f"model.layers.{i}.mlp.{part}_proj.weight"] = f"layers.{i}.{part}"
        names[f"model.layers.{i}.input_layernorm.weight"] = f"layers.{i}.attention_norm"
        names[f"model.layers.{i}.post_attention_layernorm.weight"] = f"layers.{i}.feed_forward_norm"
    model.load_state_dict({theirs: parameters[ours] for theirs, ours in names.items()})
    return model.eval()


def test_forward_equals_llama() -> None:
    """Logits and attention weights are those of transformers' Llama with the same parameters."""
    parameters = random_parameters(TINY_CONFIG)
    ids = torch.randint(
        0, TINY_CONFIG.vocabulary, (2, 20), generator=torch.Generator().manual_seed(1)
    )
    with torch.inference_mode():
        expected = as_llama(parameters, TINY_CONFIG)(ids, output_attentions=True)
        torch.testing.assert_close(
            compute_next_logits(parameters, ids, TINY_CONFIG), expected.logits, rtol=1e-4, atol=1e-4
        )
        for block, weights in zip(
            evaluate_layers(parameters, ids, TINY_CONFIG), expected.attentions, strict=True
        ):
            torch.testing.assert_close(block.attended.weights, weights, rtol=0, atol=1e-5)


def test_numpy_and_torch_agree() -> None:
    """The built-in model's weights and logits are the same in NumPy and in torch, to 1e-5."""
    stored = store.read_stored_model(store.BUILTIN)
    ids = evaluate.make_repeated_blocks(stored.config, sequences=2)
    tensors = {name: torch.from_numpy(array) for name, array in stored.parameters.items()}
    theirs = list(evaluate_layers(tensors, torch.from_numpy(ids), stored.config))
    for mine, its in zip(
        evaluate_layers(stored.parameters, ids, stored.config), theirs, strict=True
    ):
        np.testing.assert_allclose(mine.attended.weights, its.attended.weights.numpy(), atol=1e-5)
    logits = (
        compute_next_logits(stored.parameters, ids, stored.config),
        compute_next_logits(tensors, torch.from_numpy(ids), stored.config),
    )
    np.testing.assert_allclose(
        logits[0], logits[1].numpy(), **close(512, float(np.abs(logits[0]).max()))
    )
    probabilities = [np.exp(x - x.max(-1, keepdims=True)) for x in (logits[0], logits[1].numpy())]
    normalised = [x / x.sum(-1, keepdims=True) for x in probabilities]
    np.testing.assert_allclose(*normalised, atol=1e-5)


def test_the_shipped_model_has_the_heads_it_was_trained_for() -> None:
    """On 64 fresh sequences BOS + B + B: best induction head at least 0.75, best previous-token head at least 0.8."""
    stored = store.read_stored_model(store.BUILTIN)
    ids = evaluate.make_repeated_blocks(stored.config, sequences=64, block=25, seed=20260)
    best = evaluate.name_best_heads(stored.parameters, stored.config, ids)
    assert best["induction"].mean >= 0.75
    assert best["previous_token"].mean >= 0.8


def test_the_shipped_model_copies_repeated_tokens() -> None:
    """What the heads are for: the second copy of random tokens is predicted, the first is not."""
    stored = store.read_stored_model(store.BUILTIN)
    ids = evaluate.make_repeated_blocks(stored.config, sequences=16, seed=7)
    predicted = compute_next_logits(stored.parameters, ids[:, :-1], stored.config).argmax(-1)
    right = predicted == ids[:, 1:]
    assert right[:, evaluate.BLOCK + 1 :].mean() > 0.9
    assert right[:, : evaluate.BLOCK].mean() < 0.1


def test_the_shipped_model_reads_held_out_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1.85 bits per character on documents that it was not trained on, near what its training recorded."""
    stored = store.read_stored_model(store.BUILTIN)
    found = Tokenizer.from_str(stored.tokenizer)
    documents = corpus.read_corpus([Path(__file__).parent / "held_out.txt"])
    ids = corpus.encode_documents(found, documents)
    monkeypatch.setattr(evaluate, "ROWS", len(ids) // evaluate.LENGTH)  # each token once
    nats = evaluate.measure_text_loss(stored.parameters, ids, stored.config)
    bits = nats / math.log(2) * len(ids) / sum(map(len, documents))
    assert bits <= 1.85
    assert bits == pytest.approx(stored.about["bits_per_character"], abs=0.1)


def test_the_shipped_model_is_small() -> None:
    """At most 2 M parameters, weights of at most 4.2 MB in float16; its notices are beside it."""
    config, _ = store.read_model_config(store.BUILTIN)
    assert sum(math.prod(shape) for shape in list_parameter_shapes(config).values()) <= 2_000_000
    assert (store.BUILTIN / store.WEIGHTS).stat().st_size <= 4_200_000
    notice = (store.BUILTIN / "NOTICE.md").read_text("utf-8")
    assert "Chip Chapin" in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice


def test_everyday_words_are_one_token() -> None:
    """Words of everyday sentences are whole, so that a heatmap has words on its axes."""
    found = Tokenizer.from_str(store.read_stored_model(store.BUILTIN).tokenizer)
    sentence = " The children laughed because the lazy dog was too tired to jump over the fox, and mother made breakfast."
    words = sentence.replace(",", " ,").replace(".", " .").split()
    assert len(found.encode(sentence).ids) - 1 == len(words)


def test_roles_of_perfect_heads_are_one() -> None:
    """A head that does exactly the one thing scores 1 there and 0 in the others."""
    block, n = 5, 11
    rows = np.arange(n)
    for role, back in {"induction": block - 1, "duplicate": block, "previous": 1}.items():
        weights = np.zeros((1, n, n), np.float32)
        weights[0, rows, np.maximum(rows - back, 0)] = 1
        scores = (
            measure_induction(weights, block),
            measure_duplicate_token(weights, block),
            measure_previous_token(weights),
        )
        assert [float(score[0]) for score in scores] == [
            float(role == name) for name in ("induction", "duplicate", "previous")
        ]


def test_uniform_heads_score_the_mean_of_one_over_visible() -> None:
    """By chance alone, a causal head scores the mean of 1/(q + 1) over the rows that count."""
    block, n = 5, 11
    weights = np.tril(np.ones((n, n), np.float32))
    weights /= weights.sum(-1, keepdims=True)
    expected = np.mean([1 / (q + 1) for q in range(block + 1, n)])
    assert measure_induction(weights, block) == pytest.approx(expected)
    assert measure_duplicate_token(weights, block) == pytest.approx(expected)
    assert measure_previous_token(weights) == pytest.approx(
        np.mean([1 / (q + 1) for q in range(2, n)])
    )


@pytest.mark.slow
def test_training_learns_and_repeats() -> None:
    """The loss falls well below that of chance, and the same seed gives the same parameters bit for bit."""
    ids = np.tile(np.arange(1, 40), 30)
    recipe = Recipe(steps=120, seed=3, tokens=240, length=24, rate=0.02, warm_up=5)
    losses: list[float] = []
    learnt = train_parameters(ids, TINY_CONFIG, recipe, watch=lambda now: losses.append(now.loss))
    assert losses[0] == pytest.approx(math.log(TINY_CONFIG.vocabulary), rel=0.1)
    assert (
        evaluate.measure_text_loss(
            {name: p.numpy() for name, p in learnt.items()}, ids, TINY_CONFIG, 16
        )
        < 1.0
    )
    short = replace(recipe, steps=12)
    first, again, other = (
        train_parameters(ids, TINY_CONFIG, setting, watch=lambda _: None)
        for setting in (short, short, replace(short, seed=4))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding"], other["embedding"])


def test_natural_loss_equals_cross_entropy() -> None:
    """The NumPy loss is torch's, on the same rows."""
    parameters = random_parameters(TINY_CONFIG)
    ids = np.random.default_rng(0).integers(1, TINY_CONFIG.vocabulary, 17)
    found = evaluate.measure_text_loss(
        {name: p.numpy() for name, p in parameters.items()}, ids, TINY_CONFIG, 16
    )
    row = torch.from_numpy(np.concatenate([[0], ids[1:]]))[None]
    expected = torch.nn.functional.cross_entropy(
        compute_next_logits(parameters, row[:, :-1], TINY_CONFIG)[0], row[0, 1:]
    )
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_repeated_rows_repeat_and_count_from_the_second_copy() -> None:
    """A row is BOS and one block over and over; labels count exactly where the next token can be known."""
    inputs, labels = draw_repeated_row(64, 300, np.random.default_rng(0))
    row = np.concatenate([inputs, labels[-1:]])
    block = int((labels == IGNORED).sum())
    assert row[0] == 0
    assert 8 <= block <= 31
    np.testing.assert_array_equal(row[1 + block :], row[1:-block])
    np.testing.assert_array_equal(labels[block:], row[1 + block :])


def test_rows_are_what_the_recipe_says() -> None:
    """The shares of rows that repeat, before and after, and the length of rows at the end."""
    ids, recipe = np.full(1000, 7), Recipe(steps=100, tokens=64 * 400, length=64, lengthen=0.1)
    shares = []
    for step in (0, 39, 40, 89):
        inputs, labels = draw_batch(ids, TINY_CONFIG, recipe, step, np.random.default_rng(step))
        assert inputs.shape == labels.shape == (400, 64)
        shares.append(float((labels == IGNORED).any(1).float().mean()))
    assert shares == pytest.approx([0.5, 0.5, 0.25, 0.25], abs=0.08)
    assert draw_batch(ids, TINY_CONFIG, recipe, 90, np.random.default_rng(0))[0].shape == (
        800,
        TINY_CONFIG.positions,
    )


def test_the_rate_warms_up_and_falls() -> None:
    """Linear up, then a cosine down to 2 %."""
    recipe = Recipe(steps=1000, warm_up=100)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for step in (0, 99, 500, 999):
        set_rates([optimizer, optimizer], recipe, step)
        rates.append(optimizer.param_groups[0]["lr"] / recipe.muon_rate)
    assert rates == pytest.approx([0.01, 0.976, 0.51, 0.02], abs=0.002)


def test_a_narrowed_tokenizer_is_one_learnt_so() -> None:
    """Its first tokens and merges are those of a tokenizer that was learnt with that many, and spell all others."""
    texts = ["the cat sat on the mat and the other cats sat with them"] * 3
    wide, narrow = tokenizer.learn_tokenizer(texts, 290), tokenizer.learn_tokenizer(texts, 270)
    found = tokenizer.narrow_tokenizer(wide, 270)
    assert found.get_vocab() == narrow.get_vocab()
    assert found.encode(texts[0]).ids == narrow.encode(texts[0]).ids
    spelt = tokenizer.list_spellings(wide, found)
    assert spelt[:270] == [[number] for number in range(270)]
    for number in range(270, wide.get_vocab_size()):
        assert "".join(found.id_to_token(piece) for piece in spelt[number]) == wide.id_to_token(
            number
        )
        assert len(spelt[number]) > 1


def test_widening_keeps_the_model_and_adds_means() -> None:
    """Old tokens keep their embeddings, new ones begin as the mean of their pieces, the rest is left alone."""
    parameters = draw_parameters(TINY_CONFIG, 0)
    wide = widen_vocabulary(parameters, [[number] for number in range(300)] + [[5, 7]])
    torch.testing.assert_close(wide["embedding"][:300], parameters["embedding"], rtol=0, atol=0)
    torch.testing.assert_close(
        wide["embedding"][300], (parameters["embedding"][5] + parameters["embedding"][7]) / 2
    )
    assert all(wide[name] is parameters[name] for name in parameters if name != "embedding")


def test_a_wide_vocabulary_is_trained_in_two_stages() -> None:
    """Of 4,800 steps the first 3,680 know 1,024 tokens; a small vocabulary has one stage."""
    setting = run.RunSetting(steps=4800, seed=1, vocabulary=4096, layers=1, heads=2, dim=16)
    first, second = run.plan_stages(setting, 4096)
    assert (first.steps, second.steps, first.seed, second.seed) == (3680, 1120, 1, 1)
    assert run.plan_stages(setting, 1024) == (Recipe(steps=4800, seed=1), None)


@pytest.mark.exact
def test_both_stages_are_run() -> None:
    """A model with a wide vocabulary comes out of a run, its steps counted through; stopped early it is narrow."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(900)]
    documents = [" ".join(rng.choice(words, 40)) for _ in range(60)]
    setting = run.RunSetting(steps=4, seed=0, vocabulary=1100, layers=1, heads=2, dim=16)
    steps: list[int] = []
    done = run.run_training(documents, documents, setting, lambda now: steps.append(now.step))
    assert steps == [1, 2, 3, 4]
    assert (done.steps, done.stored.config.vocabulary) == (4, 1100)

    def stop(now: Progress) -> None:
        if now.step == 2:
            raise KeyboardInterrupt

    stopped = run.run_training(documents, documents, setting, stop)
    assert stopped.stored.config.vocabulary == 1024
    assert stopped.steps < 4


def test_documents_are_parted_and_held_out(tmp_path: Path) -> None:
    """An empty line parts documents, folders are searched for .txt, one document in fifty is held out."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"document {i}" for i in range(100)))
    (tmp_path / "b.md").write_text("not text")
    documents = corpus.read_corpus([tmp_path])
    learnt_from, held_out = corpus.split_documents(documents)
    assert len(documents) == 100
    assert held_out == ["document 49", "document 99"]
    assert set(learnt_from) | set(held_out) == set(documents)
    assert corpus.split_documents(["only"]) == ([], ["only"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no text"):
        corpus.read_corpus([tmp_path / "empty"])


def test_the_tokenizer_knows_every_byte() -> None:
    """Any text comes back from its tokens, and a typed <bos> is text."""
    found = tokenizer.learn_tokenizer(["a few words to learn from"], 280)
    found.encode_special_tokens = True
    for text in ("naïve 猫 👩‍🚀", "<bos>", "\x00\x1b[31m"):
        encoding = found.encode(text)
        assert found.decode(encoding.ids) == text
        assert encoding.ids.count(0) == 1


def test_a_trained_folder_round_trips(tmp_path: Path) -> None:
    """What train writes reads back, parameters rounded to float16."""
    parameters = {
        name: p.half().float().numpy() for name, p in random_parameters(TINY_CONFIG).items()
    }
    text = tokenizer.learn_tokenizer(["some words"], 300).to_str()
    store.write_stored_model(
        tmp_path / "model", store.StoredModel(TINY_CONFIG, parameters, text, {"steps": 3})
    )
    found = store.read_stored_model(tmp_path / "model")
    assert store.is_own_model(tmp_path / "model")
    assert (found.config, found.about, found.tokenizer) == (TINY_CONFIG, {"steps": 3}, text)
    assert all(np.array_equal(found.parameters[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 100), "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "tokenizer.json").write_bytes(b"\xff"), "damaged"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"model_type": "attnviz", "dim": 3}'
            ),
            "config.json",
        ),
        (lambda folder: edit(folder, layers=10**7), "impossible"),
        (lambda folder: edit(folder, layers=3), "do not fit"),
        (lambda folder: edit(folder, dim="16"), "impossible"),
        (lambda folder: edit(folder, heads=3), "heads"),
        (lambda folder: edit(folder, score="additive"), "additive.*none of dot"),
        (lambda folder: edit(folder, score=["dot"]), "none of dot"),
    ],
)
def test_a_damaged_folder_is_told(tmp_path: Path, damage: object, told: str) -> None:
    """Each way in which a model folder can be wrong gives one line."""
    parameters = {name: p.numpy() for name, p in random_parameters(TINY_CONFIG).items()}
    store.write_stored_model(
        tmp_path,
        store.StoredModel(
            TINY_CONFIG, parameters, tokenizer.learn_tokenizer(["words"], 300).to_str()
        ),
    )
    damage(tmp_path)
    with pytest.raises(ModelError, match=told) as error:
        store.read_stored_model(tmp_path)
    assert "\n" not in str(error.value)


def edit(folder: Path, **changes: object) -> None:
    import json

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_a_tiny_corpus_is_refused() -> None:
    """How much text is there and how much is needed."""
    setting = run.RunSetting(steps=1, seed=0, vocabulary=300, layers=1, heads=2, dim=16)
    with pytest.raises(InputError, match=r"tokens.*513"):
        run.run_training(["a short one", "another"], ["words"], setting, lambda _: None)


def test_initial_gains_are_one() -> None:
    """Norms start as the identity, matrices small and by the seed."""
    parameters = draw_parameters(TINY_CONFIG, 0)
    assert all((p == 1).all() for name, p in parameters.items() if name.endswith("norm"))
    assert torch.equal(parameters["embedding"], draw_parameters(TINY_CONFIG, 0)["embedding"])


@pytest.mark.cuda
def test_training_on_cuda_learns() -> None:
    """The same training runs on a GPU."""
    ids = np.tile(np.arange(1, 40), 30)
    recipe = Recipe(steps=120, tokens=240, length=24, rate=0.02, warm_up=5)
    found = train_parameters(ids, TINY_CONFIG, recipe, device="cuda", watch=lambda _: None)
    assert (
        evaluate.measure_text_loss(
            {name: p.numpy() for name, p in found.items()}, ids, TINY_CONFIG, 16
        )
        < 1.0
    )
