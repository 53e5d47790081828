import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer
from transformers.models.auto.tokenization_auto import (
    MODEL_IDS_TO_TOKENIZERS_BACKEND,
    MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS,
    TOKENIZER_MAPPING_NAMES,
)

from attnviz.models.chat_process import ChatTemplateError, choose_template
from attnviz.models.chat_template import write_messages
from attnviz.models.numpy.config import UnsuitableError
from attnviz.models.numpy.tokenizer import FileTokenizer, open_tokenizer
from attnviz.models.numpy.tokenizer_classes import (
    BACKEND,
    CLASSES_BY_MODEL,
    MISNAMED,
    PATCHED_FOLDERS,
)
from attnviz.models.numpy.tokenizer_files import WITHOUT_EFFECT
from attnviz.models.prompts import encode_text, make_vocabulary, spell_prompt
from attnviz.request import Prompt
from tests.tokenizer_folders import CHATML, FAMILIES, SAMPLES, TokenizerFolder, number_tokens

pytestmark = pytest.mark.exact
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
SPECIAL = (
    "[CLS]", "[SEP]", "[MASK]", "[UNK]", "<s>", "</s>", "<unk>", "<mask>", "<pad>", "<bos>", "<|endoftext|>",
    "<|im_start|>", "<|eot_id|>", "<|user|>", "<tool_call>", "<start_of_turn>", "</s>NOTUSED", "<0x0A>", "  ",
    "\n\n", "\u2581", "\u2581\u2581the", "\u0120", "##ing", "newtoken", "<left>", "<right>", " the", "The",
)  # fmt: skip
NASTY = (
    "", " ", "  ", "\n", "\t\n ", " a", "a ", "  leading and trailing  ", "a  b   c    d        e",
    "tab\tnew\nline\r\nreturn\rfeed\x0cnull\x00end", "Café naïve Ångström İstanbul ß ﬁ ǅ",
    "e\u0301 a\u0308\u0323 \u0301start", "zero\u200bwidth\u200djoin\u2060er \ufeffmark \u00adsoft",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ☺️ 🇩🇪", "日本語のテキスト、中文文本。한국어 텍스트", "العربية עברית हिन्दी ไทย",
    "[CLS] hello [SEP] [MASK][MASK] world[UNK]", "<s> a </s><s>b</s> <mask> <pad>", "a <mask>b  <mask> c",
    "<|endoftext|>one<|endoftext|> two <|endoftext|>", "\u2581a \u2581\u2581b\u2581 \u2581", "Ġa Ċb ĉ",
    "12345678901234567890 3.14159 1,000,000", "don't I'm you're we've it's they'll he'd DON'T",
    "snake_case CamelCase kebab-case a/b\\c x=y+z; f(x)[0] {k: v}", "a" * 150, "\ud7ff\ue000\uffff\U0010ffff",
    "it ' s not . really , right ? yes ! n't 'm 's 've 're", "½ ² ① Ⅳ ٣\U0001d7d8", "ﷺ ﬃ Ǆ K Å",
    "newtoken <left>  x  <right>  y  newtokennewtoken NEWTOKEN", "<|im_start|>user\nhi<|im_end|>\n",
)  # fmt: skip
VARIED = (
    "bert", "distilbert", "electra", "roberta", "xlm-roberta", "camembert", "gpt2", "gpt_neox", "llama",
    "llama 3", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo2", "phi3",
)  # fmt: skip
"""Families whose tokenizers differ in kind."""
TEXTS = (*SAMPLES.values(), *NASTY)
PAIRS = (
    (SAMPLES["pair"], SAMPLES["question"]),
    ("a", "b c d e f g h"),
    ("one two", ""),
    ("", "x"),
    (" <s>", "[SEP] "),
)
Ours = FileTokenizer
Pair = tuple[Ours, Any]


def load_both(folder: Path) -> Pair:
    """Load a tokenizer here, and by transformers."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    theirs = AutoTokenizer.from_pretrained(
        folder, config=AutoConfig.from_pretrained(folder), local_files_only=True
    )
    theirs.truncation_side = "right"
    return open_tokenizer(folder, config), theirs


def assert_same_state(both: Pair) -> None:
    """Compare all that does not depend on a text, with every component, piece and score."""
    ours, theirs = both
    state, expected = (
        json.loads(ours.backend.to_str()),
        json.loads(theirs.backend_tokenizer.to_str()),
    )
    for part in ("padding", "truncation"):  # of a call
        state.pop(part)
        expected.pop(part)
    assert state == expected
    assert ours.backend.encode_special_tokens == theirs.backend_tokenizer.encode_special_tokens
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    added, expected_added = ours.added_tokens_decoder, theirs.added_tokens_decoder
    assert {number: token.__getstate__() for number, token in added.items()} == {
        number: token.__getstate__() for number, token in expected_added.items()
    }
    assert ours.all_special_tokens == theirs.all_special_tokens
    assert ours.all_special_ids == theirs.all_special_ids
    assert ours.tokens == theirs.special_tokens_map
    for role in ROLES:
        assert getattr(ours, f"{role}_token_id") == getattr(theirs, f"{role}_token_id")
    assert ours.model_max_length == theirs.model_max_length
    assert ours.chat_template == theirs.chat_template
    assert ours.is_fast == theirs.is_fast
    assert bool(ours)


def encode_both(both: Pair, texts: tuple[str, ...], **options: Any) -> list[int] | None:
    """Encode a text, or two, by both tokenizers, and compare all of the encoding.

    Returns the ids; None if both fail.
    """
    ours, theirs = both
    options = {"return_special_tokens_mask": True, "return_offsets_mapping": True, **options}
    try:
        expected = theirs(*texts, **options)
    except Exception as error:
        with pytest.raises(type(error)):
            ours(*texts, **options)
        return None
    encoding = ours(*texts, **options)
    for name in ("input_ids", "special_tokens_mask", "offset_mapping"):
        assert encoding[name] == expected[name]
    assert ("token_type_ids" in encoding) == ("token_type_ids" in expected)
    if "token_type_ids" in expected:
        assert encoding["token_type_ids"] == expected["token_type_ids"]
    assert encoding.sequence_ids(0) == expected.sequence_ids(0)
    ids: list[int] = encoding["input_ids"]
    return ids


def assert_same_text(both: Pair, *texts: str) -> None:
    """Compare the encodings of a text, or two, and what is decoded."""
    ours, theirs = both
    encode_both(both, texts, add_special_tokens=False)
    encode_both(both, texts, truncation=True)
    encode_both(both, texts, truncation=True, max_length=4)
    encode_both(both, texts, truncation=True, max_length=7, add_special_tokens=False)
    ids = encode_both(both, texts)
    if ids is None:
        return
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    for skips in (False, True):
        for cleans in (False, True, None):
            options = {"skip_special_tokens": skips, "clean_up_tokenization_spaces": cleans}
            assert ours.decode(ids, **options) == theirs.decode(ids, **options)


@pytest.fixture(scope="session")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Both tokenizers of a family, made when they are asked for."""
    made: dict[str, Pair] = {}

    def load(name: str) -> Pair:
        if name not in made:
            folder = FAMILIES[name]().write(tmp_path_factory.mktemp("tokenizers") / "model")
            made[name] = load_both(folder)
        return made[name]

    return load


@pytest.mark.parametrize("name", FAMILIES)
def test_families_encode_as_transformers(name: str, load_family: Callable[[str], Pair]) -> None:
    """A tokenizer of each family has the same state, and makes the same tokens of samples and nasty texts."""
    both = load_family(name)
    assert_same_state(both)
    for text in TEXTS:
        assert_same_text(both, text)
    for pair in PAIRS:
        assert_same_text(both, *pair)


parts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(SPECIAL),
    st.sampled_from((" ", "  ", "\n", "\t", "\u0301")),
)
written = st.lists(parts, max_size=8).map("".join)


def compare_anything(both: Pair, count: int) -> None:
    """Compare the encodings of so many texts, alone and in pairs."""

    @settings(max_examples=count)
    @example("", "")
    @given(written, written)
    def compare(text: str, pair: str) -> None:
        encode_both(both, (text,), add_special_tokens=False)
        ids = encode_both(both, (text, pair))
        encode_both(both, (text, pair), truncation=True, max_length=6)
        if ids is not None:
            ours, theirs = both
            assert ours.decode(ids) == theirs.decode(ids)

    compare()


@pytest.mark.parametrize("name", VARIED)
def test_any_text_is_encoded_as_by_transformers(
    name: str, load_family: Callable[[str], Pair]
) -> None:
    """Texts that nobody would write are encoded alike."""
    compare_anything(load_family(name), 60)


@pytest.mark.sweep
@pytest.mark.parametrize("name", FAMILIES)
def test_a_thousand_texts_are_encoded_as_by_transformers(
    name: str, load_family: Callable[[str], Pair]
) -> None:
    """Many such texts are encoded alike."""
    compare_anything(load_family(name), 1000)


def test_minilm(minilm: Path) -> None:
    """The tokenizer of a real model is the same."""
    both = load_both(minilm)
    assert_same_state(both)
    for text in TEXTS:
        assert_same_text(both, text)
    for pair in PAIRS:
        assert_same_text(both, *pair)
    compare_anything(both, 60)


# Settings and files that change a tokenizer


def change_settings(**changes: Any) -> Callable[[TokenizerFolder], None]:
    """Change entries of the tokenizer_config.json."""
    return lambda folder: folder.settings.update(changes)


def add_more_tokens(folder: TokenizerFolder) -> None:
    """Add tokens that strip spaces, match words only, or are normalised."""
    folder.tokenizer.add_tokens([
        AddedToken("newtoken"),
        AddedToken("<left>", lstrip=True, normalized=False),
        AddedToken("<right>", rstrip=True, special=True),
        AddedToken("Straße", single_word=True),
    ])  # fmt: skip
    folder.settings["added_tokens_decoder"] = number_tokens(folder.tokenizer)


def add_skipped_tokens(folder: TokenizerFolder) -> None:
    """Number added tokens with a gap between them and the vocabulary."""
    folder.settings.setdefault("added_tokens_decoder", number_tokens(folder.tokenizer))
    start = folder.tokenizer.get_vocab_size() + 10
    tokens = {
        str(start): AddedToken("<left>"),
        str(start + 5): AddedToken("newtoken", special=True),
    }
    for number, token in tokens.items():
        folder.settings["added_tokens_decoder"][number] = token.__getstate__()


def drop_decoder(folder: TokenizerFolder) -> None:
    """Leave out the added tokens, as tokenizer_config.json files of before 2023 do."""
    add_more_tokens(folder)
    folder.settings.pop("added_tokens_decoder", None)


def write_older_files(folder: TokenizerFolder) -> None:
    """Write special tokens and added tokens into files of their own, as before 2023."""
    drop_decoder(folder)
    roles = {
        role: folder.settings.pop(role) for role in list(folder.settings) if role.endswith("_token")
    }
    named = {role: token for role, token in roles.items() if isinstance(token, str)}
    fields = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    for role in ("unk_token", "mask_token"):
        if role in named:
            named[role] = {"content": named[role], **fields}
    extra = ["<right>", "<later>"]
    folder.settings.pop("additional_special_tokens", None)
    size = folder.tokenizer.get_vocab_size()
    folder.others = {
        "special_tokens_map.json": {**named, "additional_special_tokens": extra},
        "added_tokens.json": {"<right>": size, "<later>": size + 1, "newtoken": size + 2},
    }


def write_other_extra_tokens(folder: TokenizerFolder) -> None:
    """Name special tokens without a role in both words that there are for them."""
    write_older_files(folder)
    folder.settings["extra_special_tokens"] = ["<first>"]
    folder.others["special_tokens_map.json"]["extra_special_tokens"] = [
        "<left>",
        "<first>",
        "<more>",
    ]


def pad_and_cut(folder: TokenizerFolder) -> None:
    """Write padding and truncation into the tokenizer.json."""
    folder.tokenizer.enable_padding(length=9, pad_token="<filler>", pad_id=0, direction="left")
    folder.tokenizer.enable_truncation(5, stride=1, direction="left")
    folder.settings.pop("pad_token", None)


def change_components(folder: TokenizerFolder) -> None:
    """Write other components into the tokenizer.json than the class makes."""
    folder.tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase()]
    )
    folder.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            folder.tokenizer.pre_tokenizer or pre_tokenizers.Whitespace(),
        ]
    )


def drop_post_processor(folder: TokenizerFolder) -> None:
    """Leave out the post-processor."""

    def drop(document: dict[str, Any]) -> None:
        document["post_processor"] = None

    folder.change = drop


def drop_settings(folder: TokenizerFolder) -> None:
    """Leave out all settings but the class."""
    declared = folder.settings.get("tokenizer_class")
    folder.settings.clear()
    if declared is not None:
        folder.settings["tokenizer_class"] = declared


def drop_class(folder: TokenizerFolder) -> None:
    """Leave out the class."""
    folder.settings.pop("tokenizer_class", None)


def move_class(folder: TokenizerFolder) -> None:
    """Name the class in the config."""
    declared = folder.settings.pop("tokenizer_class", None)
    if declared is not None:
        folder.config["tokenizer_class"] = declared


def name_fast_class(folder: TokenizerFolder) -> None:
    """Name the class by its older name."""
    declared = folder.settings.get("tokenizer_class")
    if declared is not None and not declared.endswith("Fast"):
        folder.settings["tokenizer_class"] = f"{declared}Fast"


def mark_tokens(folder: TokenizerFolder) -> None:
    """Write special tokens as transformers 4 wrote them into tokenizer_config.json."""
    fields = {
        "__type": "AddedToken",
        "lstrip": True,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }
    folder.settings.pop("added_tokens_decoder", None)
    folder.settings["eos_token"] = {"content": "<the end>", **fields}
    folder.settings["sep_token"] = {"content": "<between>", "special": True, **fields}
    folder.settings["extra_special_tokens"] = [{"content": "<extra>", **fields}, "<plain>"]


def own_tokens(folder: TokenizerFolder) -> None:
    """Name special tokens of roles that only this model has."""
    folder.settings["image_token"] = "<image>"
    folder.settings["extra_special_tokens"] = {"audio_token": "<audio>"}
    folder.settings.pop("additional_special_tokens", None)


IGNORED = {
    "add_bos_token": True,
    "add_eos_token": True,
    "backend": "sentencepiece",
    "clean_text": False,
    "do_basic_tokenize": False,
    "errors": "strict",
    "fast": False,
    "files_loaded": ["vocab.txt"],
    "from_slow": True,
    "full_tokenizer_file": "/nowhere/tokenizer.json",
    "is_local": False,
    "local_files_only": False,
    "max_length": 3,
    "merges_file": "/nowhere/merges.txt",
    "model_type": "t5",
    "name_or_path": "somebody/mistral",
    "never_split": ["the"],
    "pad_to_multiple_of": 8,
    "pad_token_type_id": 1,
    "padding_side": "left",
    "processor_class": "SomeProcessor",
    "response_schema": {"type": "object"},
    "response_template": "{{ x }}",
    "sp_model_kwargs": {"enable_sampling": True},
    "spaces_between_special_tokens": True,
    "special_tokens_map_file": "/nowhere/special_tokens_map.json",
    "stride": 2,
    "tokenizer_file": "/nowhere/tokenizer.json",
    "transformers_version": "4.1",
    "truncation_side": "left",
    "truncation_strategy": "only_second",
    "use_auth_token": True,
    "use_default_system_prompt": True,
    "use_fast": False,
    "vocab_file": "/nowhere/vocab.txt",
    "vocab_size": 7,
    "wordpieces_prefix": "++",
}
"""Entries of a tokenizer_config.json that have no bearing on tokens, with values that might."""
VARIATIONS: Mapping[str, Callable[[TokenizerFolder], None]] = {
    "cased": change_settings(do_lower_case=False),
    "cased, accents stripped": change_settings(do_lower_case=False, strip_accents=True),
    "accents kept": change_settings(strip_accents=False, tokenize_chinese_chars=False),
    "space first": change_settings(add_prefix_space=True),
    "no space first": change_settings(add_prefix_space=False),
    "legacy": change_settings(legacy=True),
    "begins and ends": change_settings(add_bos_token=True, add_eos_token=True),
    "offsets not trimmed": change_settings(trim_offsets=False),
    "special tokens split": change_settings(split_special_tokens=True),
    "not cleaned": change_settings(clean_up_tokenization_spaces=False),
    "cleaned": change_settings(clean_up_tokenization_spaces=True),
    "no limit": change_settings(model_max_length=None, max_len=3),
    "entries without effect": change_settings(**IGNORED),
    "older limit": lambda folder: folder.settings.update({"max_len": folder.settings.pop("model_max_length", 5)}),
    "left": change_settings(padding_side="left", truncation_side="left"),
    "segments": change_settings(model_input_names=["input_ids", "token_type_ids", "attention_mask"]),
    "no segments": change_settings(model_input_names=["input_ids"]),
    "new special tokens": change_settings(bos_token="<first>", eos_token="<last>", pad_token="<nothing>"),
    "extra special tokens": change_settings(additional_special_tokens=["<x>", "newtoken"]),
    "extra special tokens, newer": change_settings(extra_special_tokens=["<x>", " y "]),
    "no extra special tokens": change_settings(additional_special_tokens=[], extra_special_tokens={}),
    "extra special tokens, empty in newer words": change_settings(
        additional_special_tokens=["<x>"], extra_special_tokens=[]
    ),
    "another unknown token": change_settings(unk_token="</s>"),
    "own tokens": own_tokens,
    "own tokens, listed": change_settings(model_specific_special_tokens={"video_token": "<video>"}),
    "own tokens, listed and named": change_settings(
        model_specific_special_tokens={"video_token": "<video>"}, image_token="<image>"
    ),
    "more tokens": add_more_tokens,
    "numbers with gaps": add_skipped_tokens,
    "no added tokens": drop_decoder,
    "older files": write_older_files,
    "older files, newer words": write_other_extra_tokens,
    "marked tokens": mark_tokens,
    "padding and truncation": pad_and_cut,
    "other components": change_components,
    "no post-processor": drop_post_processor,
    "no settings": drop_settings,
    "no class": drop_class,
    "class in config": move_class,
    "older class": name_fast_class,
}  # fmt: skip
"""Changes of a folder, by what they do."""
MOST_VARIED = ("bert", "xlm-roberta", "camembert", "gpt2", "gpt_neox", "llama", "llama 3", "qwen2")
VARIED_TEXTS = (
    "İstanbul Café ² newtoken <left>  x  <right>  y",
    "Straße <mask> [MASK] a</s> b <|endoftext|>c 123",
    "<image><x> newtoken<first> <later>\n\n the cat.",
)


def compare_variation(variation: str, names: Sequence[str], tmp_path: Path) -> None:
    """Compare tokenizers of families whose folders are changed; what transformers refuses is refused."""
    for name in names:
        folder = FAMILIES[name]()
        VARIATIONS[variation](folder)
        path = folder.write(tmp_path / name)
        try:
            both = load_both(path)
        except ValueError:
            with pytest.raises(UnsuitableError):
                open_folder(path)
            continue
        assert_same_state(both)
        for text in VARIED_TEXTS:
            assert_same_text(both, text)
        assert_same_text(both, *VARIED_TEXTS[:2])


@pytest.mark.parametrize("variation", VARIATIONS)
def test_settings_and_files_are_followed(variation: str, tmp_path: Path) -> None:
    """Each setting and file changes a tokenizer as it changes that of transformers."""
    compare_variation(variation, MOST_VARIED, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize("variation", VARIATIONS)
def test_settings_and_files_are_followed_by_all(variation: str, tmp_path: Path) -> None:
    """Each setting and file changes a tokenizer of any family as it changes that of transformers."""
    compare_variation(variation, VARIED, tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_transformers_saves_is_read(
    name: str, load_family: Callable[[str], Pair], tmp_path: Path
) -> None:
    """A folder that transformers saves makes the same tokenizer as it makes of it."""
    _, theirs = load_family(name)
    folder = FAMILIES[name]()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(folder.config))
    both = load_both(tmp_path)
    assert_same_state(both)
    for text in VARIED_TEXTS:
        assert_same_text(both, text)


def test_every_entry_without_effect_is_tried() -> None:
    """The entries that are ignored are those that a variation sets."""
    assert set(IGNORED) == WITHOUT_EFFECT


def test_every_type_of_model_has_the_class_of_transformers() -> None:
    """The table of classes says what that of transformers says."""
    for kind, name in CLASSES_BY_MODEL.items():
        expected = TOKENIZER_MAPPING_NAMES.get(kind)
        is_native = expected == "MistralCommonBackend"  # where that package is installed
        assert name == (BACKEND if is_native else expected)
        assert (kind in MISNAMED) == (kind in MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
    assert list(PATCHED_FOLDERS) == MODEL_IDS_TO_TOKENIZERS_BACKEND


@pytest.mark.parametrize("index", [0, 1, 2])
def test_scores_are_those_that_python_reads(index: int, tmp_path: Path) -> None:
    """Scores of pieces have the last digit that transformers gives them, whatever class it takes."""
    folder = FAMILIES[("xlm-roberta", "camembert", "xlm-roberta")[index]]()
    if index == 2:
        folder.settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    draw = Random(index)

    def change(document: dict[str, Any]) -> None:
        for piece in document["model"]["vocab"]:
            piece[1] = -15 * draw.random()

    folder.change = change
    assert_same_state(load_both(folder.write(tmp_path)))


def make_large(kind: str, **config: Any) -> TokenizerFolder:
    """A tokenizer with more tokens than transformers trusts those of Mistral to have."""
    folder = FAMILIES["llama 3"]()
    folder.config = {"model_type": kind, **config}

    def add_letters(document: dict[str, Any]) -> None:
        vocabulary = document["model"]["vocab"]
        start = max(vocabulary.values()) + 1
        letters = (chr(code) for code in range(0x20000, 0x20000 + 101_000))
        vocabulary.update({letter: start + count for count, letter in enumerate(letters)})

    folder.change = add_letters
    return folder


@pytest.mark.parametrize(
    ("kind", "version"),
    [("llama", "4.45.0"), ("mistral", "4.45.0"), ("mistral", "5.1.0.dev0"), ("mistral", None)],
)
def test_large_vocabularies_are_not_patched(kind: str, version: str | None, tmp_path: Path) -> None:
    """Transformers only warns of the words of a large tokenizer of Mistral, and changes nothing."""
    folder = make_large(kind, transformers_version=version)
    both = load_both(folder.write(tmp_path))
    assert_same_state(both)
    assert_same_text(both, SAMPLES["review"])


def test_large_vocabulary_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    """Transformers cannot compare such a version, and fails."""
    folder = make_large("mistral", transformers_version="the newest")
    with pytest.raises(UnsuitableError, match="the newest"):
        open_folder(folder.write(tmp_path))


# What is refused


def refuse_component(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {"type": "Telepathy"}


def rename_model(document: dict[str, Any]) -> None:
    document["model"]["type"] = "WordLevel"


def forget_type(document: dict[str, Any]) -> None:
    del document["model"]["type"]


def mark_endings(document: dict[str, Any]) -> None:
    document["model"]["end_of_word_suffix"] = "</w>"


def forget_added_tokens(document: dict[str, Any]) -> None:
    del document["added_tokens"]


REFUSED: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "unknown setting": ("bert", {"lower_my_case": True}, "lower_my_case"),
    "code of its own": ("bert", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "auto_map"),
    "unknown class": ("bert", {"tokenizer_class": "BertJapaneseTokenizer"}, "BertJapaneseTokenizer"),
    "class of another package": ("mistral", {"tokenizer_class": "MistralCommonBackend"}, "MistralCommonBackend"),
    "class that is no name": ("bert", {"tokenizer_class": 7}, "tokenizer_class"),
    "versioned files": ("bert", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files"),
    "patched words": ("mistral", {"fix_mistral_regex": True}, "fix_mistral_regex"),
    "no unknown token": ("bert", {"unk_token": None}, "unk_token"),
    "token that is a number": ("gpt2", {"eos_token": 7}, "eos_token"),
    "token without a type": ("gpt2", {"eos_token": {"content": "<|endoftext|>"}}, "eos_token"),
    "empty token": ("gpt2", {"eos_token": ""}, "eos_token"),
    "extra tokens that are a text": ("gpt2", {"extra_special_tokens": "<x>"}, "extra_special_tokens"),
    "own token that is a list": ("gpt2", {"extra_special_tokens": {"image_token": ["<x>"]}}, "special tokens"),
    "role of an own token": ("gpt2", {"extra_special_tokens": {"eos_token": "<x>"}}, "special tokens"),
    "side that is none": ("gpt2", {"padding_side": "top"}, "padding_side"),
    "limit that is a text": ("gpt2", {"model_max_length": "512"}, "model_max_length"),
    "inputs that are no list": ("gpt2", {"model_input_names": None}, "model_input_names"),
    "added tokens that are a list": ("gpt2", {"added_tokens_decoder": []}, "added tokens"),
    "added token of a new kind": ("gpt2", {"added_tokens_decoder": {"0": {"content": "a", "loud": True}}}, "added token"),
    "space that is a text": ("gpt2", {"add_prefix_space": "yes"}, "cannot be made"),
    "templates that are a number": ("gpt2", {"chat_template": 7}, "chat templates"),
}  # fmt: skip
"""Settings that are refused: the family, the settings, and a word of the reason."""
REFUSED_FILES = {
    "unknown component": ("bert", refuse_component, "cannot be made"),
    "unknown component of a class with scores": ("xlm-roberta", refuse_component, "cannot be made"),
    "another model": ("bert", rename_model, "cannot be made|which its class has not"),
    "model without a type": ("bert", forget_type, "which its class has not"),
    "marked endings of words": ("gpt2", mark_endings, "marks parts of words"),
    "no added tokens": ("bert", forget_added_tokens, "of a form"),
}


def open_folder(folder: Path) -> FileTokenizer:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return open_tokenizer(folder, config)


@pytest.mark.parametrize("name", REFUSED)
def test_unknown_settings_are_refused(name: str, tmp_path: Path) -> None:
    """A setting that is not known here, or whose value is not, is refused and named."""
    family, changes, reason = REFUSED[name]
    folder = FAMILIES[family]()
    folder.settings.update(changes)
    with pytest.raises(UnsuitableError, match=reason):
        open_folder(folder.write(tmp_path))


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_unknown_components_are_refused(name: str, tmp_path: Path) -> None:
    """A tokenizer.json with anything that is not known here is refused."""
    family, change, reason = REFUSED_FILES[name]
    folder = FAMILIES[family]()
    folder.change = change
    with pytest.raises(UnsuitableError, match=reason):
        open_folder(folder.write(tmp_path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5"}, "'t5'"),
        ({}, "None"),
        ({"model_type": ["bert"]}, "bert"),
        ({"model_type": "bert", "model_name": "phi3"}, "model_name"),
        ({"model_type": "bert", "_name_or_path": "google/umt5-small"}, "umt5"),
        ({"model_type": "llama", "tokenizer_class": "CodeLlamaTokenizer"}, "CodeLlamaTokenizer"),
    ],
)
def test_unknown_models_are_refused(config: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """A model whose tokenizer transformers chooses by rules not known here is refused."""
    folder = FAMILIES["bert"]()
    del folder.settings["tokenizer_class"]
    folder.config = config
    with pytest.raises(UnsuitableError, match=reason):
        open_folder(folder.write(tmp_path))


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("tokenizer.json", None, "no tokenizer.json"),
        ("tokenizer.json", "{", "cannot be read"),
        ("tokenizer.json", "[]", "form"),
        ("tokenizer_config.json", "[]", "no list of settings"),
        ("tokenizer_config.json", "{", "cannot be read"),
        ("tekken.json", "{}", "tekken.json"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja"),
        ("additional_chat_templates/file.jinja", "{{ messages }}", "confuses"),
        ("special_tokens_map.json", '{"eos_token": null}', "eos_token"),
        ("special_tokens_map.json", '{"smile_token": ":)"}', "smile_token"),
        ("added_tokens.json", '{"<x>": "7"}', "added_tokens.json"),
    ],
)
def test_unknown_files_are_refused(
    file: str, text: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    """A folder without a tokenizer.json, or with files that cannot be read, is refused."""
    folder = FAMILIES["gpt_neox"]()
    path = folder.write(tmp_path)
    if text is None:
        (path / file).unlink()
    else:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnsuitableError, match=reason):
        open_folder(path)


def test_texts_that_look_like_a_vocabulary_are_read(tmp_path: Path) -> None:
    """Added tokens that spell parts of a tokenizer.json do not confuse the reader of that file."""
    folder = FAMILIES["gpt_neox"]()
    spelt = ['"vocab": {"a": 1}', 'vocab": {}', '"merges": ["a b"]', "\\", '\\"', "[1, {"]
    folder.tokenizer.add_tokens(spelt)
    both = load_both(folder.write(tmp_path))
    assert_same_state(both)
    assert_same_text(both, " ".join(spelt))


# Chats

LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
CLEVER = """
{%- set ns = namespace(count=0, names=[]) %}
{%- if tools %}never{% endif %}
{% for message in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.role == "assistant" %}
    {% generation %}[{{ message.content }}]{% endgeneration %}
    {%- else %}{{ message | tojson }} {{ message | tojson(indent=2) }}{% endif %}
    {{- message.reasoning_content }}{{ message.thinking }}{{ message.content is defined }}
    {{- dict(a=1, b=[2]) | tojson }}{{ dict.fromkeys("ab", 1) }}
{% endfor %}
{{ ns.count }} {{ eos_token }} {{ pad_token }} {{ image_token }} {{ strftime_now("%Y") }}
"""
DANGEROUS = (
    "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}",
    "{% set ns = namespace(_a=1) %}", "{% set ns = namespace() %}{% set ns._a = 1 %}", "{{ dict.__class__.__base__ }}",
    "{{ raise_exception('no') }}", "{% if %}", "{{ missing.attribute }}", "{{ 1 / 0 }}", "{{ cycler.__init__.__globals__ }}",
    "{{ strftime_now.__globals__ }}", "{{ tojson }}", "{{ messages | tojson(sort_keys=True) }}", "{% continue %}",
)  # fmt: skip
CHATS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "  Hello <b>&</b> \u2028 ünï  "}],
    [{"role": "system", "content": "Be nice."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
    [{"role": "user", "content": "a"}] * 5,
    [{"role": "user", "content": None, "tool_calls": None}],
    [{"role": "assistant", "content": "b", "thinking": "hm", "extra": {"a": [1, 2.5, True, None]}}],
    [{"role": "assistant", "content": "b", "reasoning": "so"}],
    [{"role": "user", "content": [{"type": "text", "text": "part"}]}],
    [{"role": "user"}],
    [],
)


def write_with_template(
    tokenizer: FileTokenizer, messages: list[dict[str, Any]], prompted: bool
) -> str:
    """Write messages by the template of a tokenizer, in this process."""
    try:
        template = choose_template(tokenizer)
    except ChatTemplateError as error:
        raise ValueError from error
    return write_messages(template, messages, tokenizer.special_tokens_map, prompted=prompted)


def assert_same_chats(both: Pair) -> None:
    """Compare what the templates of two tokenizers write, or that both refuse to write."""
    ours, theirs = both
    for messages in CHATS:
        for prompted in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompted}
            try:
                expected = theirs.apply_chat_template(messages, **options)
            except Exception as error:
                # what the template itself says has the same words
                words = re.escape(str(error)) if type(error) is TemplateError else None
                with pytest.raises(type(error), match=words):
                    write_with_template(ours, messages, prompted)
                continue
            assert write_with_template(ours, messages, prompted) == expected


@pytest.mark.parametrize("template", [CHATML, LLAMA3, GEMMA, CLEVER, *DANGEROUS])
def test_templates_write_as_in_transformers(template: str, tmp_path: Path) -> None:
    """Chat templates write the same, see the same variables, and are stopped by the same sandbox."""
    folder = FAMILIES["gemma"]()
    folder.settings |= {"chat_template": template, "image_token": "<image>"}
    assert_same_chats(load_both(folder.write(tmp_path)))


@pytest.mark.parametrize(
    ("setting", "files"),
    [
        (None, {}),
        (None, {"chat_template.jinja": LLAMA3}),
        (CHATML, {"chat_template.jinja": LLAMA3}),
        (CHATML, {"chat_template.json": {"chat_template": LLAMA3}}),
        ([{"name": "default", "template": CHATML}, {"name": "rag", "template": LLAMA3}], {}),
        ([{"name": "rag", "template": LLAMA3}], {}),
        ({"default": CHATML}, {}),
        (CHATML, {"additional_chat_templates/rag.jinja": LLAMA3}),
        (None, {"additional_chat_templates/rag.jinja": LLAMA3, "chat_template.jinja": CHATML}),
        (CHATML, {"additional_chat_templates/default.jinja": LLAMA3}),
    ],
)
def test_templates_are_found_as_by_transformers(
    setting: Any, files: dict[str, Any], tmp_path: Path
) -> None:
    """A template is found in the settings or in files, alone or among several."""
    folder = FAMILIES["llama 3"]()
    folder.settings["chat_template"] = setting
    folder.others = files
    both = load_both(folder.write(tmp_path))
    assert_same_state(both)
    assert_same_chats(both)


# What attnviz makes of tokens


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen2", "xlm-roberta"])
def test_prompts_are_encoded_with_either_tokenizer(
    name: str, load_family: Callable[[str], Pair]
) -> None:
    """Both tokenizers serve where attnviz encodes prompts, spells ids and makes up texts."""
    ours, theirs = load_family(name)
    prompts = [
        Prompt(SAMPLES["paragraph"]),
        Prompt(SAMPLES["pair"], pair="A second text."),
        Prompt("  two  spaces <mask>\n\u2581"),
    ]
    if name == "qwen2":
        prompts.append(Prompt('[{"role": "user", "content": ["one", "two"]}]', chat=True))
    for prompt in prompts:
        for limit in (None, 9):
            encoded, expected = (
                encode_text(tokenizer, prompt, limit, True, "it") for tokenizer in (ours, theirs)
            )
            assert encoded == expected
    ids = ours(SAMPLES["emoji_code"])["input_ids"]
    assert (
        spell_prompt(ours, ids, None, "it").tokens == spell_prompt(theirs, ids, None, "it").tokens
    )
    assert make_vocabulary(ours, 400, 512) == make_vocabulary(theirs, 400, 512)


# Cost


def test_reading_a_tokenizer_imports_neither_torch_nor_transformers(minilm: Path) -> None:
    """A tokenizer is read, and encodes, without torch, transformers and Jinja."""
    code = (
        "import json, sys; from pathlib import Path; from attnviz.models.numpy.tokenizer import open_tokenizer; "
        "folder = Path(sys.argv[1]); config = json.loads((folder / 'config.json').read_text()); "
        "ids = open_tokenizer(folder, config)('Hello world')['input_ids']; "
        "print(ids, sorted({'torch', 'transformers', 'jinja2'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(minilm)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "[101, 7592, 2088, 102] []\n"
