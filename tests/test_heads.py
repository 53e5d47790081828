"""What heads are: closed forms, chance, random models without roles, and heads that models are known to have."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from attnviz.analysis.roles import (
    ROLES,
    Layout,
    scale_above_chance,
    score_local,
    score_roles,
    score_uniform,
)
from attnviz.cli.heads import read_texts
from attnviz.errors import InputError, UsageError
from attnviz.experiments.heads import find_head_roles, find_separators, measure_head_roles
from attnviz.experiments.sequences import (
    EXCERPT_CHARACTERS,
    MOST_DOCUMENTS,
    draw_repeated_sequences,
    take_excerpts,
)
from attnviz.io.samples import PLAIN_ENGLISH, find_samples
from attnviz.lm import evaluate, store
from attnviz.models import load_model
from attnviz.models.huggingface.model import HuggingFace
from attnviz.record import Token
from attnviz.render.terminal.draw import Screen, draw_picture_lines
from attnviz.request import Prompt, Request, Vocabulary
from attnviz.results.head_roles import (
    HeadRole,
    Roles,
    RoleScore,
    SequenceSettings,
    explain_roles,
    make_names_table,
    make_roles_table,
    make_scores_table,
)
from attnviz.selection import parse_heads
from tests.commands import list_loaded_packages, require_failure
from tests.conftest import SENTENCE, Run, Tiny
from tests.tiny import END, SIZES, VOCABULARY, plain_tokenizer
from tests.tolerance import close

pytestmark = pytest.mark.numeric

BLOCK, N = 5, 12
CAUSAL, EVERY = np.tri(N, dtype=bool), np.ones((N, N), bool)


def pointing(back: int) -> np.ndarray:
    """A head whose queries give all to the key so many places before them, and nothing where there is none."""
    return np.eye(N, k=-back, dtype=np.float32)


# Roles


@pytest.mark.parametrize(
    ("role", "back"),
    [
        ("induction", 4),
        ("duplicate_token", 5),
        ("previous_token", 1),
        ("self_token", 0),
        ("next_token", -1),
    ],
)
@pytest.mark.parametrize("first", [0, 1, 2])
def test_perfect_heads_score_one(role: str, back: int, first: int) -> None:
    """A head that does exactly the one thing scores 1 there and nowhere else, wherever the first copy begins."""
    found = score_roles(pointing(back), Layout(EVERY, BLOCK, first), "repeated")
    scores = {
        name: float(found[name].score)
        for name in found
        if name not in ("first_token", "local", "uniform")
    }
    assert scores.pop(role) == 1
    assert {*scores.values()} == {0}


def test_sinks_and_separators_score_their_weight() -> None:
    """Half of the weight on the first token and a quarter on each of two separators are just these scores."""
    weights = np.zeros((N, N), np.float32)
    weights[:, [0, 3, 7]] = 0.5, 0.25, 0.25
    found = score_roles(weights, Layout(EVERY, separators=(3, 7)), "text")
    assert found["first_token"].score == found["separator"].score == 0.5


def test_local_is_what_no_one_distance_explains() -> None:
    """Weight spread over five neighbours scores 4/5, all on one of them or all far away 0."""
    spread = sum(pointing(back) for back in range(-2, 3)) / 5
    assert score_local(spread, Layout(EVERY)) == pytest.approx(0.8)
    assert [float(score_local(pointing(back), Layout(EVERY))) for back in (-2, -1, 0, 1, 2, 5)] == [
        0
    ] * 6


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_uniform_is_the_entropy_of_scipy(seed: int) -> None:
    """Over the rows that see two keys or more, entropy by its largest value; 1 for uniform rows, 0 for one-hot ones."""
    weights = np.tril(np.random.default_rng(seed).random((N, N)) + 0.01)
    weights /= weights.sum(-1, keepdims=True)
    expected = np.mean([entropy(weights[q, : q + 1]) / math.log(q + 1) for q in range(1, N)])
    assert score_uniform(weights, Layout(CAUSAL)) == pytest.approx(expected, abs=1e-6)
    assert score_uniform(CAUSAL / CAUSAL.sum(-1, keepdims=True), Layout(CAUSAL)) == pytest.approx(1)
    assert score_uniform(np.eye(N), Layout(CAUSAL)) == 0


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=20)
def test_scores_are_shares_and_know_no_order_of_heads(seed: int, causal: bool) -> None:
    """Every score lies in [0, 1]; heads in another order have their scores in that order."""
    visible = CAUSAL if causal else EVERY
    weights = np.where(visible, np.random.default_rng(seed).random((2, 3, N, N)), 0).astype(
        np.float32
    )
    weights /= weights.sum(-1, keepdims=True)
    layout = Layout(visible[None, None], BLOCK, 1, (4,))
    for data in ("repeated", "text"):
        found, turned = (
            score_roles(weights, layout, data),
            score_roles(weights[:, ::-1], layout, data),
        )
        for role, (score, _) in found.items():
            assert score.shape == (2, 3)
            defined = score[~np.isnan(score)]
            assert ((defined >= 0) & (defined <= 1 + 1e-6)).all()
            np.testing.assert_allclose(turned[role].score, score[:, ::-1], **close(64))


@pytest.mark.parametrize("visible", [CAUSAL, EVERY])
def test_chance_is_that_of_the_same_sequences(visible: np.ndarray) -> None:
    """The baseline is one over the visible keys, averaged over the queries that count."""
    found = score_roles(np.eye(N, dtype=np.float32), Layout(visible, BLOCK, 1), "repeated")
    seen = visible.sum(-1)
    for role, queries in {
        "induction": range(6, 11),
        "duplicate_token": range(6, 11),
        "self_token": range(1, N),
    }.items():
        assert found[role].chance == pytest.approx(np.mean([1 / seen[q] for q in queries]))
    assert found["uniform"].chance == pytest.approx(1)
    assert [
        scale_above_chance(0.5, 0.5),
        scale_above_chance(1.0, 0.5),
        scale_above_chance(1.0, 1.0),
    ] == [0, 1, 0]


def test_what_no_query_can_do_is_undefined() -> None:
    """The next token under a causal mask, separators where there are none, anything in a text of one token: NaN."""
    found = score_roles(pointing(0), Layout(CAUSAL), "text")
    assert np.isnan(found["next_token"].score)
    assert np.isnan(found["separator"].score)
    assert not np.isnan(found["self_token"].score)
    one = score_roles(np.ones((1, 1), np.float32), Layout(np.ones((1, 1), bool)), "text")
    assert all(np.isnan(part.score) for part in one.values())


def test_separators_are_punctuation_and_special_tokens_after_the_first() -> None:
    """Words, signs that are no punctuation and the first token are none."""
    texts = ["[CLS]", "Stop", ".", "+", "...", "", "[SEP]"]
    tokens = [Token(text, 0, 0, 0, text.startswith("[")) for text in texts]
    assert find_separators(tokens) == (2, 4, 6)


# Sequences


def test_sequences_are_what_they_are_said_to_be() -> None:
    """Prefix, a block of distinct plain tokens, the block again, suffix; another seed gives others."""
    vocabulary = Vocabulary(tuple(range(10, 60)), (1,), (2, 3), 64)
    found = draw_repeated_sequences(vocabulary, SequenceSettings(5, 20, 7), "toy")
    for ids in found:
        assert (ids[:1], ids[41:]) == ((1,), (2, 3))
        assert ids[1:21] == ids[21:41]
        assert len({*ids[1:21]} & {*vocabulary.plain}) == 20
    assert len({*found}) == 5
    assert (
        draw_repeated_sequences(vocabulary, SequenceSettings(5, 20, 7), "toy")
        == found
        != draw_repeated_sequences(vocabulary, SequenceSettings(5, 20, 8), "toy")
    )
    assert draw_repeated_sequences(vocabulary, SequenceSettings(1, 30), "toy")
    with pytest.raises(UsageError, match=r"block of 31 .* toy: at most 30"):
        draw_repeated_sequences(vocabulary, SequenceSettings(1, 31), "toy")


def test_a_corpus_is_read_in_part() -> None:
    """So many documents at most, from all over it, and the beginning of each."""
    documents = [f"{i} " + "x" * 2000 for i in range(1000)]
    found = take_excerpts(documents)
    assert len(found) == MOST_DOCUMENTS
    assert {*map(len, found)} == {EXCERPT_CHARACTERS}
    assert (found[0][:2], found[-1][:3]) == ("0 ", "999")
    assert take_excerpts(["a", "b"]) == ["a", "b"]


def test_the_samples_are_prose() -> None:
    """The texts that heads are measured on are among the samples."""
    assert {*PLAIN_ENGLISH} <= {*find_samples()}
    assert len(read_texts(None)) == len(PLAIN_ENGLISH)


@pytest.mark.parametrize("name", ["builtin", "minilm", "gpt2"])
def test_ids_are_read_as_their_text_is(name: str, minilm: Path, tiny: Tiny) -> None:
    """A prompt of ids gives the attention of the text with these tokens."""
    model = load_model(
        {"builtin": "builtin", "minilm": str(minilm), "gpt2": str(tiny("gpt2"))}[name]
    )
    by_text = model.capture(Prompt(SENTENCE), Request()).maps[0]
    by_ids = model.capture(
        Prompt("", ids=tuple(token.id for token in by_text.keys)), Request()
    ).maps[0]
    np.testing.assert_allclose(by_ids.weights, by_text.weights, atol=1e-6)
    assert [(token.id, token.special) for token in by_ids.keys] == [
        (token.id, token.special) for token in by_text.keys
    ]
    assert sum(token.text.lower() == "mat" for token in by_ids.keys) == 1


def test_ids_stand_alone(minilm: Path) -> None:
    """Ids beside a text, or none, are a mistake of the caller's; more than the model reads are told in one line."""
    for wrong in ({"text": "a", "ids": (1,)}, {"text": "", "ids": ()}, {"text": "", "ids": (-1,)}):
        with pytest.raises(ValueError, match="token id"):
            Prompt(**wrong)
    for name in ("builtin", str(minilm)):
        with pytest.raises(InputError, match="sequence of ids has 600 tokens"):
            load_model(name).capture(Prompt("", ids=(5,) * 600), Request())


def test_vocabularies_tell_plain_tokens_from_others(minilm: Path, tiny: Tiny) -> None:
    """What stands around a text is known, and nothing special, added or never used is plain."""
    bert = load_model(str(minilm))
    vocabulary = bert.read_vocabulary()
    names = AutoTokenizer.from_pretrained(minilm).convert_ids_to_tokens(list(vocabulary.plain))
    around = vocabulary.prefix, vocabulary.suffix, vocabulary.positions
    assert around == ((101,), (102,), 512)
    assert len(names) > 29_000
    assert not {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[unused7]"} & {*names}
    models = "builtin", str(tiny("llama")), str(tiny("chat"))
    builtin, llama, chat = (load_model(name).read_vocabulary() for name in models)
    assert (builtin.prefix, builtin.suffix, len(builtin.plain)) == ((0,), (), VOCABULARY - 1)
    assert llama.plain == chat.plain == builtin.plain
    assert (llama.prefix, llama.suffix) == ((0,), ())


# Models


def found_heads(model: object, sequences: int = 16) -> dict[tuple[int, int], HeadRole]:
    return {
        head.place: head
        for head in measure_head_roles(model, SequenceSettings(sequences), read_texts(None)).heads
    }


def test_the_builtin_model_has_the_heads_it_was_trained_for() -> None:
    """Induction of at least 0.75 and previous token of at least 0.8 are named; scores are those of training's check."""
    found = found_heads(load_model())
    named = {role: [head for head in found.values() if head.role == role] for role in ROLES}
    assert max(head.scores["induction"].mean for head in named["induction"]) >= 0.75
    assert max(head.scores["previous_token"].mean for head in named["previous_token"]) >= 0.8
    stored = store.read_stored_model(store.BUILTIN)
    ids = evaluate.make_repeated_blocks(stored.config, 16, 25, 0)
    best = evaluate.name_best_heads(stored.parameters, stored.config, ids)
    for role in ("induction", "previous_token"):
        head = max(named[role], key=lambda head: head.scores[role].mean)
        assert f"L{head.layer}H{head.head}" == best[role].head
        assert head.scores[role].mean == pytest.approx(best[role].mean, abs=1e-5)
        assert head.scores[role].sd == pytest.approx(
            best[role].sd * np.sqrt(16 / 15), abs=1e-5
        )  # of a sample


def test_the_previous_token_head_of_minilm_is_found_on_text(minilm: Path) -> None:
    """L0H2 is named, and its score on text is that of eager transformers and plain NumPy."""
    found = found_heads(load_model(str(minilm)), sequences=4)[0, 2]
    assert found.role == "previous_token"
    assert found.on_text["previous_token"].mean > 0.95
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    scores = []
    for text in read_texts(None):
        with torch.inference_mode():
            weights = (
                model(**tokenizer(text, return_tensors="pt"), output_attentions=True)
                .attentions[0][0, 2]
                .numpy()
            )
        scores.append(np.mean([weights[q, q - 1] for q in range(2, len(weights))]))
    expected = RoleScore(
        float(np.mean(scores)),
        float(np.std(scores, ddof=1)),
        found.on_text["previous_token"].chance,
        len(scores),
    )
    assert found.on_text["previous_token"] == pytest.approx(expected, abs=1e-5)


def ended_tokenizer() -> PreTrainedTokenizerFast:
    """A text has a beginning and an end, as an encoder's."""
    tokenizer = Tokenizer.from_str(store.read_stored_model(store.BUILTIN).tokenizer)
    tokenizer.add_special_tokens([END])
    tokenizer.post_processor = TemplateProcessing(
        f"<bos> $A {END}", None, [("<bos>", 0), (END, VOCABULARY)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", sep_token=END)


def random_model(kind: str, deviation: float, layers: int) -> HuggingFace:
    sizes = {"vocab_size": VOCABULARY + 3, "initializer_range": deviation}
    if kind == "llama":
        config = LlamaConfig(
            **{**SIZES, **sizes, "num_hidden_layers": layers, "max_position_embeddings": 256}
        )
        return HuggingFace("random", LlamaForCausalLM(config).eval(), plain_tokenizer())
    if kind == "gpt2":
        config = GPT2Config(
            **sizes, n_embd=48, n_layer=layers, n_head=6, n_positions=256, bos_token_id=0
        )
        return HuggingFace("random", GPT2LMHeadModel(config).eval(), plain_tokenizer())
    config = BertConfig(
        **sizes,
        hidden_size=48,
        num_hidden_layers=layers,
        num_attention_heads=6,
        intermediate_size=96,
    )
    return HuggingFace("random", BertModel(config).eval(), ended_tokenizer())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("deviation", [0.02, 0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_no_head_of_a_random_model_has_a_name(kind: str, deviation: float) -> None:
    """In three architectures and sizes of weights, under four seeds each; nor is any near a threshold."""
    for seed in range(4):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            model = random_model(kind, deviation, layers=8 if seed == 3 else 2)
        found = measure_head_roles(model, SequenceSettings(2, 25, seed), read_texts(None)[:4])
        assert {head.role for head in found.heads} == {None}
        for name, role in ROLES.items():
            for head in found.heads:
                scores = [
                    head.scores_on(data)[name] for data in role.data if name in head.scores_on(data)
                ]
                if role.threshold and scores:
                    assert (
                        min(scale_above_chance(part.mean, part.chance) for part in scores)
                        < 0.8 * role.threshold
                    ), name


def test_a_random_builtin_has_no_names(tmp_path: Path) -> None:
    """Our own architecture with noise for weights: nothing is named, and the screen says so."""
    from attnviz.lm.train import draw_parameters

    stored = store.read_stored_model(store.BUILTIN)
    noise = {name: part.numpy() for name, part in draw_parameters(stored.config, 5).items()}
    store.write_stored_model(
        tmp_path / "noise", store.StoredModel(stored.config, noise, stored.tokenizer)
    )
    found = measure_head_roles(
        load_model(str(tmp_path / "noise")), SequenceSettings(), read_texts(None)
    )
    assert not [head for head in found.heads if head.role]
    assert "no head plays a role" in make_names_table(found).caption[0]


def test_one_sequence_has_no_deviation() -> None:
    """Over one sequence and one text the deviation is undefined."""
    found = measure_head_roles(load_model(), SequenceSettings(1, 10), ["One text."])
    assert all(
        math.isnan(part.sd)
        for head in found.heads
        for part in (*head.scores.values(), *head.on_text.values())
    )


# The command


def test_json_is_as_it_is_documented(call: Run) -> None:
    """The schema, each head with its role and scores, definitions; the same bytes each time; no NaN."""
    args = "heads", "--sequences", "1", "--block", "8", "--seed", "3", "--json"
    done = call(*args)
    assert done.returncode == 0, done.stderr
    assert call(*args).stdout == done.stdout
    data = json.loads(done.stdout, parse_constant=pytest.fail)
    assert [data[name] for name in ("schema", "model", "sequences", "block", "seed")] == [
        "attnviz/1",
        "builtin",
        1,
        8,
        3,
    ]
    assert {*data["definitions"]} == {*ROLES}
    assert [(head["layer"], head["head"]) for head in data["heads"]] == [
        (i, j) for i in range(3) for j in range(6)
    ]
    head = data["heads"][2]
    assert head["role"] == "previous_token"
    assert {*head["scores"]["induction"]} == {"mean", "sd", "chance", "n"}
    assert head["scores"]["induction"]["sd"] is None
    assert head["on_text"]["previous_token"]["n"] == len(PLAIN_ENGLISH)
    assert "induction" not in head["on_text"]
    assert "next_token" not in head["scores"]


def test_the_screen_names_heads_and_says_how(call: Run) -> None:
    """Names with their scores, the best head of each role with deviation and chance, what was measured; 80 columns."""
    done = call("heads", "--width", "80", "--color", "never")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for told in (
        "ind.89",
        "prv.97",
        ".89 ± .04",
        "threshold",
        "16 sequences of 51 tokens",
        "row-exact mean",
    ):
        assert told in done.stdout
    assert "heads --role" not in call("heads", "-q", "--sequences", "1").stderr


def test_heads_are_chosen(call: Run) -> None:
    """-l and -H choose what is listed, of all heads that were measured alike."""
    for args, expected in (
        (["-H", "L0H2,L1H-1"], [(0, 2), (1, 5)]),
        (["-l", "-1", "-H", "0,3"], [(2, 0), (2, 3)]),
    ):
        data = json.loads(call("heads", "--sequences", "1", "--json", *args).stdout)
        assert [(head["layer"], head["head"]) for head in data["heads"]] == expected


def test_one_role_of_all_heads(call: Run) -> None:
    """--role shows that score of every head, and the heads in its order."""
    done = call(
        "heads", "--role", "induction", "--sequences", "2", "--width", "80", "--color", "never"
    )
    assert "builtin · induction on repeats" in done.stdout
    assert done.stdout.index("L1H3  .") < done.stdout.index("L1H2  .")


def test_csv_has_a_line_for_each_score(call: Run, tmp_path: Path) -> None:
    """Layer, head, data and score name a line, and each stands there once."""
    call("heads", "--sequences", "2", "-o", "heads.csv")
    first, *lines = (tmp_path / "heads.csv").read_text().splitlines()
    assert first == "layer,head,role,data,score,mean,sd,chance,n"
    assert (
        len({tuple(line.split(",")[i] for i in (0, 1, 3, 4)) for line in lines})
        == len(lines)
        == 18 * (7 + 6)
    )


@pytest.mark.parametrize(
    "form", ["svg", *(pytest.param(form, marks=pytest.mark.exact) for form in ("png", "pdf"))]
)
def test_figures_show_the_map(call: Run, tmp_path: Path, form: str) -> None:
    """A figure is of the map, the same bytes each time."""
    made = []
    for name in ("one", "two"):
        done = call("heads", "--sequences", "2", "-o", f"{name}.{form}")
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / f"{name}.{form}").read_bytes())
    assert made[0] == made[1]
    assert form != "svg" or b">prv.9" in made[0]


def test_roles_are_explained_without_a_model(call: Run) -> None:
    """Every role with its data, threshold, definition and source, in 80 columns."""
    done = call("heads", "--explain-roles", "--model", "not-there", "--offline")
    assert done.returncode == 0
    assert done.stdout.splitlines() == explain_roles()
    assert max(map(len, explain_roles())) <= 80
    assert all(name in done.stdout for name in ROLES)
    assert done.stdout.count("threshold") == sum(
        role.threshold is not None for role in ROLES.values()
    )


def test_a_corpus_of_the_users_own(call: Run, tiny: Tiny, tmp_path: Path) -> None:
    """Texts are parted by empty lines, and cut to what the model reads; those of one token say nothing."""
    (tmp_path / "mine.txt").write_text("the cat sat\n\n" + "all the day long " * 200 + "\n\na\n\n")
    for model in ("builtin", tiny("gpt2")):
        done = call(
            "heads",
            "--corpus",
            "mine.txt",
            "--json",
            "--block",
            "8",
            "--sequences",
            "1",
            "-m",
            model,
        )
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        assert data["texts"] == 3
        assert data["heads"][0]["on_text"]["first_token"]["n"] == 3  # <bos> and a are two
        assert data["heads"][0]["on_text"]["local"]["n"] == 1


@pytest.mark.exact
@pytest.mark.parametrize(
    ("args", "code", "told"),
    [
        (["--role", "copying"], 2, "'copying' is not one of 'induction'"),
        (["--block", "300"], 2, "too long for builtin: at most 255"),
        (["--block", "1"], 2, "4<=x"),
        (["--sequences", "0"], 2, "--sequences"),
        (["-H", "L9H1"], 2, "layer 9 does not exist"),
        (["-H", "L1H1", "-l", "0"], 2, "leave --layers out"),
        (["-o", "heads.npz"], 2, "not .npz"),
        (["--corpus", "nowhere.txt"], 4, "nowhere.txt"),
        (["--model", "no/such-model", "--offline"], 3, "no/such-model"),
    ],
)
def test_mistakes_get_one_line(call: Run, args: list[str], code: int, told: str) -> None:
    """What is wrong, what is allowed, and the right exit code."""
    require_failure(
        call("heads", "--sequences", "1", "-q", *args)
        if args[0] != "--sequences"
        else call("heads", *args),
        code,
        told,
    )


@pytest.mark.exact
@pytest.mark.parametrize("name", ["t5", "bart"])
def test_models_of_two_texts_are_refused(call: Run, tiny: Tiny, name: str) -> None:
    """Encoder-decoders read a text and a target, and no sequence of ids."""
    require_failure(call("heads", "-m", tiny(name)), 2, "reads a text and a target")


@pytest.mark.parametrize(("layers", "heads"), [(6, 12), (30, 9)])
def test_large_maps_fit_a_screen(layers: int, heads: int) -> None:
    """72 and 270 heads, with and without names, are a line a layer in 80 columns."""
    score = RoleScore(0.88, 0.02, 0.03, 16)
    found = tuple(
        HeadRole(i, j, "induction" if j % 2 else None, {"induction": score}, {})
        for i in range(layers)
        for j in range(heads)
    )
    roles = Roles("a-model", found, SequenceSettings(), 51, 6)
    for table in (make_names_table(roles), make_scores_table(roles, "induction")):
        lines = [
            "".join(part.text for part in line)
            for line in draw_picture_lines(table, Screen(width=80))
        ]
        assert max(map(len, lines)) <= 80
        assert len([line for line in lines if line.startswith("L") and line[1].isdigit()]) == layers
    assert len(make_roles_table(roles).rows) == 1


@pytest.mark.exact
def test_the_builtin_model_needs_no_torch() -> None:
    """Heads of the built-in model are measured in NumPy."""
    assert not list_loaded_packages("heads", "--sequences", "1") & {
        "torch",
        "transformers",
        "matplotlib",
        "huggingface_hub",
    }


def test_roles_are_found_in_python() -> None:
    """A result of the heads that are chosen, in all its forms, with the losses if these are asked for."""
    texts = read_texts(None)[:2]
    chosen = parse_heads("L0H2,L1H3")
    plain = find_head_roles(
        load_model(), texts, SequenceSettings(2, 8), heads=chosen, role="induction"
    )
    assert plain.ablation is None
    assert [head["role"] for head in plain.to_dict()["heads"]] == ["previous_token", "induction"]
    assert {row["score"] for row in plain.rows()} <= {*ROLES}
    assert plain.tables()[0].title.endswith("induction on repeats")
    ablated = find_head_roles(
        load_model(),
        texts,
        SequenceSettings(2, 8),
        heads=chosen,
        ablates=True,
    )
    assert [heads["heads"] for heads in ablated.to_dict()["ablation"]["without"]] == [
        ((0, 2),),
        ((1, 3),),
    ]
    assert {row["replaced_by"] for row in ablated.rows()} == {"zero", "mean"}
    assert len(ablated.tables()) == 3
