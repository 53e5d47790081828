"""Folders of every kind that a user may hand to --model: each is read rightly, or refused in one line."""

import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.utils import import_utils

from attnviz.models import load_model
from attnviz.models.huggingface.encoding import make_tokens
from attnviz.record import Capture
from attnviz.request import NOTHING, Prompt, Request
from tests.conftest import SENTENCE, Run
from tests.tiny import (
    SIZES,
    VOCABULARY,
    chat_tokenizer,
    ending_tokenizer,
    load_in_torch,
    plain_tokenizer,
    save,
)
from tests.tolerance import close

WIDTH = 64  # the longest sums are over so many terms
FULL = VOCABULARY + 3
ENCODER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "initializer_range": 0.3,
}
T5 = {
    "vocab_size": FULL,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "initializer_factor": 1.5,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": VOCABULARY,
}
BART = {
    "vocab_size": FULL,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": VOCABULARY,
    "forced_eos_token_id": None,
}
WHISPER = {
    "vocab_size": FULL,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 40,
    "init_std": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": VOCABULARY,
    "decoder_start_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 8,
}
TOWER = {  # of CLIP and its kind
    "vocab_size": FULL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": VOCABULARY,
    "pad_token_id": 0,
}
WEIGHTS = "adapter_model.safetensors"
IMAGE = VOCABULARY + 2  # the token that stands for an image, or for sound
Build = Callable[[], Any]
Door = Callable[[str], Path]


def make_model(name: str, **options: Any) -> Any:
    """A model of the library by the name of its class, of a config with these options."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**options))


def pair(kind: str, encoder: Any, decoder: Any) -> Any:
    """An encoder and a decoder of two classes, put together."""
    whole = getattr(transformers, kind)
    config = whole.config_class.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 0, 0, VOCABULARY
    return whole(config=config)


def bert_config() -> Any:
    return transformers.BertConfig(vocab_size=FULL, **ENCODER)


def gpt2_config() -> Any:
    return transformers.GPT2Config(
        vocab_size=FULL,
        n_embd=32,
        n_layer=3,
        n_head=2,
        n_positions=40,
        initializer_range=0.3,
        eos_token_id=VOCABULARY,
    )


def vit_config() -> Any:
    return transformers.ViTConfig(**VISION)


def clap() -> Any:
    audio = {
        "patch_embeds_hidden_size": 16,
        "hidden_size": 64,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "num_mel_bins": 64,
        "spec_size": 64,
        "patch_size": 4,
        "window_size": 4,
    }
    return make_model("ClapModel", text_config={"vocab_size": FULL, **ENCODER}, audio_config=audio)


def group_vit() -> Any:
    vision = {
        **VISION,
        "depths": [1, 1, 1],
        "num_hidden_layers": 3,
        "num_group_tokens": [8, 4, 0],
        "num_output_groups": [8, 4, 4],
    }
    return make_model("GroupViTModel", text_config=TOWER, vision_config=vision)


def blip2() -> Any:
    language = {
        "model_type": "opt",
        "vocab_size": FULL,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 64,
        "max_position_embeddings": 40,
        "word_embed_proj_dim": 32,
        "init_std": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": None,
    }
    former = {"vocab_size": FULL, "encoder_hidden_size": 32, **ENCODER}
    options = {"text_config": language, "vision_config": VISION, "qformer_config": former}
    return make_model(
        "Blip2ForConditionalGeneration", **options, num_query_tokens=2, image_token_index=IMAGE
    )


def wav2vec2() -> Any:
    convolutions = {
        "conv_dim": [16, 16],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_feat_extract_layers": 2,
    }
    places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return make_model("Wav2Vec2ForCTC", vocab_size=32, **convolutions, **places, **ENCODER)


def lxmert() -> Any:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    return make_model("LxmertModel", vocab_size=FULL, **sizes, l_layers=1, x_layers=1, r_layers=1)


def time_series() -> Any:
    sizes = dict.fromkeys(("encoder_layers", "decoder_layers"), 1)
    heads = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    return make_model(
        "TimeSeriesTransformerModel",
        prediction_length=4,
        context_length=8,
        d_model=16,
        **sizes,
        **heads,
    )


def gemma3() -> Any:
    text = {**SIZES, "head_dim": 8, "sliding_window": 6}
    marks = {"image_token_id": IMAGE, "boi_token_index": IMAGE - 1, "eoi_token_index": IMAGE - 2}
    return make_model(
        "Gemma3ForConditionalGeneration",
        text_config=text,
        vision_config=VISION,
        mm_tokens_per_image=4,
        **marks,
    )


def llava() -> Any:
    text, vision = {**SIZES, "model_type": "llama"}, {**VISION, "model_type": "clip_vision_model"}
    return make_model(
        "LlavaForConditionalGeneration",
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
    )


def qwen2_vl() -> Any:
    rope = {
        "type": "mrope",
        "rope_type": "default",
        "mrope_section": [1, 1, 2],
        "rope_theta": 10000.0,
    }
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 48, "num_heads": 4, "patch_size": 8}
    marks = {"image_token_id": IMAGE, "video_token_id": IMAGE - 1}
    marks |= {"vision_start_token_id": IMAGE - 2, "vision_end_token_id": IMAGE - 2}
    text = {**SIZES, "rope_parameters": rope}
    return make_model(
        "Qwen2VLForConditionalGeneration", text_config=text, vision_config=vision, **marks
    )


def idefics3() -> Any:
    text = {**SIZES, "model_type": "llama", "pad_token_id": 0}
    sizes = {"image_token_id": IMAGE, "scale_factor": 1}
    return make_model(
        "Idefics3ForConditionalGeneration", text_config=text, vision_config=VISION, **sizes
    )


def qwen2_audio() -> Any:
    sizes = {
        "d_model": 32,
        "encoder_layers": 1,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
    }
    audio = {**sizes, "num_mel_bins": 8, "max_source_positions": 10}
    text = {**SIZES, "model_type": "qwen2"}
    return make_model(
        "Qwen2AudioForConditionalGeneration",
        text_config=text,
        audio_config=audio,
        audio_token_index=IMAGE,
    )


HALVES: dict[str, Build] = {
    "t5 encoder": partial(make_model, "T5EncoderModel", **T5),
    "bart decoder": partial(make_model, "BartForCausalLM", **BART),
    "mt5 encoder": partial(make_model, "MT5EncoderModel", **T5),
    "umt5 encoder": partial(make_model, "UMT5EncoderModel", **T5),
    "marian decoder": partial(make_model, "MarianForCausalLM", **BART),
    "whisper decoder": partial(make_model, "WhisperForCausalLM", **WHISPER),
    "dpr of contexts": partial(make_model, "DPRContextEncoder", vocab_size=FULL, **ENCODER),
}
PAIRS: dict[str, Build] = {
    "bert and bert": lambda: pair("EncoderDecoderModel", bert_config(), bert_config()),
    "bert and gpt2": lambda: pair("EncoderDecoderModel", bert_config(), gpt2_config()),
    "t5 without its head": partial(make_model, "T5Model", **T5),
}
TOWERS: dict[str, Build] = {
    "clip": partial(make_model, "CLIPModel", text_config=TOWER, vision_config=VISION),
    "siglip": partial(make_model, "SiglipModel", text_config=TOWER, vision_config=VISION),
    "clap": clap,
    "altclip": partial(
        make_model,
        "AltCLIPModel",
        text_config={"vocab_size": FULL, "project_dim": 32, **ENCODER},
        vision_config=VISION,
    ),
    "group vit": group_vit,
    "blip2": blip2,
}
NOT_OF_TEXT: dict[str, Build] = {
    "vit": partial(make_model, "ViTForImageClassification", **VISION),
    "wav2vec2": wav2vec2,
    "whisper": partial(make_model, "WhisperForConditionalGeneration", **WHISPER),
    "vit and gpt2": lambda: pair("VisionEncoderDecoderModel", vit_config(), gpt2_config()),
    "lxmert": lxmert,
    "time series": time_series,
}
WRITERS: dict[str, Build] = {
    "gemma3": gemma3,
    "llava": llava,
    "qwen2-vl": qwen2_vl,
    "idefics3": idefics3,
    "qwen2-audio": qwen2_audio,
}
MODELS: dict[str, tuple[Build, Callable[[], Any]]] = {
    **{name: (build, ending_tokenizer) for name, build in (HALVES | PAIRS | TOWERS).items()},
    **{name: (build, chat_tokenizer) for name, build in WRITERS.items()},
    "llama": (partial(make_model, "LlamaForCausalLM", **SIZES), chat_tokenizer),
}


def sample(names: Iterable[Any], count: int) -> list[Any]:
    """Parameters of a test, of which the default run takes the first few, and the sweep the rest."""
    return [
        pytest.param(name, marks=[pytest.mark.sweep] * (place >= count))
        for place, name in enumerate(names)
    ]


@pytest.fixture(scope="session")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    """The folder of a small random model with its tokenizer, by its name in ``MODELS``."""
    folders: dict[str, Path] = {}

    def door(name: str) -> Path:
        if name not in folders:
            build, tokenizer = MODELS[name]
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(0)
                folders[name] = save(
                    build(), tmp_path_factory.mktemp("doors") / name.replace(" ", "-"), tokenizer
                )
        return folders[name]

    return door


def load_reference(folder: Path, attention: str | None = "eager") -> Any:
    """A model as the library loads it by the class that its config names."""
    (name,) = transformers.AutoConfig.from_pretrained(folder).architectures
    return getattr(transformers, name).from_pretrained(folder, attn_implementation=attention).eval()


def ids_of(folder: Path, text: str = SENTENCE) -> torch.Tensor:
    return AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]


def stack(attentions: Any) -> np.ndarray:
    """(layer, head, query, key) of the first text."""
    return torch.stack(list(attentions))[:, 0].detach().numpy()


def capture_folder(folder: Path, **prompt: Any) -> Capture:
    return load_in_torch(folder).capture(Prompt(SENTENCE, **prompt), Request())


def require_line(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr, with these words, and nothing else."""
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file; None takes one away."""
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(
        json.dumps({name: value for name, value in values.items() if value is not None})
    )


# Parts of models, which the config names by their class


@pytest.mark.numeric
@pytest.mark.parametrize("name", sample(HALVES, 2))
def test_halves_are_read_by_the_class_that_the_config_names(name: str, door: Door) -> None:
    """An encoder or a decoder that was saved alone has the weights of its own class, and one kind of map."""
    (found,) = capture_folder(door(name)).maps
    uncached = {"use_cache": False} if "decoder" in name else {}
    with torch.no_grad():
        outputs = load_reference(door(name))(
            input_ids=ids_of(door(name)), output_attentions=True, **uncached
        )
    assert found.kind == "self"
    np.testing.assert_allclose(found.weights, stack(outputs.attentions), **close(WIDTH))


@pytest.mark.numeric
@pytest.mark.parametrize("name", sample(PAIRS, 1))
def test_encoders_and_decoders_of_two_kinds_are_read(name: str, door: Door) -> None:
    """The three maps of an encoder-decoder that no class of the library is for, and of one without its head."""
    capture = capture_folder(door(name), target="The dog")
    ids = torch.tensor([[token.id for token in capture.maps[1].queries]])
    with torch.no_grad():
        outputs = load_reference(door(name))(
            input_ids=ids_of(door(name)),
            decoder_input_ids=ids,
            output_attentions=True,
            use_cache=False,
        )
    assert [part.kind for part in capture.maps] == ["encoder", "decoder", "cross"]
    for part in capture.maps:
        name = {
            "encoder": "encoder_attentions",
            "decoder": "decoder_attentions",
            "cross": "cross_attentions",
        }[part.kind]
        np.testing.assert_allclose(part.weights, stack(outputs[name]), **close(WIDTH))


def test_a_decoder_half_continues_a_text(door: Door) -> None:
    """Its own layers are counted, where it has more than the encoder that is not there."""
    folder = door("bart decoder")
    model = load_reference(folder)
    model.config.encoder_layers = model.config.decoder_layers
    expected = model.generate(ids_of(folder), max_new_tokens=3, do_sample=False, eos_token_id=None)[
        0
    ].tolist()
    found = (
        load_model(str(folder), writes=True)
        .capture(Prompt(SENTENCE, generate=3), Request())
        .maps[0]
    )
    assert [token.id for token in found.queries] == expected


# Models of images and sound


@pytest.mark.numeric
@pytest.mark.parametrize("name", sample(TOWERS, 3))
def test_the_text_model_of_a_model_of_images_or_sound_is_read(name: str, door: Door) -> None:
    """What reads the text has the weights that it has in the whole model, and a note says what was run."""
    capture = capture_folder(door(name))
    whole = load_reference(door(name))
    tower = whole.language_model if name == "blip2" else whole.text_model
    with torch.no_grad():
        outputs = tower(
            input_ids=ids_of(door(name)), output_attentions=True, output_hidden_states=True
        )
    (found,) = capture.maps
    attentions = outputs.attentions
    if name == "altclip":  # its wrapper returns none
        attentions = tower.roberta(input_ids=ids_of(door(name)), output_attentions=True).attentions
    np.testing.assert_allclose(found.weights, stack(attentions), **close(WIDTH))
    assert any("only its text model" in note for note in capture.notes)


@pytest.mark.parametrize("name", sample(NOT_OF_TEXT, 3))
def test_models_that_read_no_text_are_told(call: Run, tmp_path: Path, name: str) -> None:
    """One line says what to do with a model of images, sound or numbers, which mostly has no tokenizer beside it."""
    model = NOT_OF_TEXT[name]()
    model.save_pretrained(tmp_path / "model")
    if name in ("vit", "lxmert"):
        plain_tokenizer().save_pretrained(tmp_path / "model")
    require_line(
        call("show", SENTENCE, "-m", tmp_path / "model"), 3, "does not read a text alone", "inputs="
    )


@pytest.mark.parametrize("name", sample(WRITERS, 2))
def test_models_of_images_and_text_continue_a_text(name: str, door: Door) -> None:
    """What is written is what the library writes, one token after the other."""
    folder = door(name)
    ids = ids_of(folder)
    whole = torch.ones_like(ids)  # else the library takes a token that also pads for padding
    expected = load_reference(folder, None).generate(
        input_ids=ids, attention_mask=whole, max_new_tokens=3, do_sample=False
    )
    found = (
        load_model(str(folder), writes=True)
        .capture(Prompt(SENTENCE, generate=3), Request())
        .maps[0]
    )
    assert [token.id for token in found.queries] == expected[0].tolist()


@pytest.mark.numeric
@pytest.mark.parametrize("name", sample(WRITERS, 2))
def test_models_of_images_and_text_predict(name: str, door: Door) -> None:
    """What is said after a text are the logits of the library."""
    folder = door(name)
    response = load_model(str(folder), predicts=True).respond(Prompt(SENTENCE), [NOTHING])
    with torch.no_grad():
        logits = load_reference(folder, None)(input_ids=ids_of(folder)).logits[0, -1].numpy()
    assert response.kind == "next"
    np.testing.assert_allclose(response.outputs[0], logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "command",
    [
        ("show", SENTENCE, "--generate", "3"),
        ("show", SENTENCE, "--weights", "gradient"),
        ("attribute", SENTENCE),
        ("heads", "--ablate", "-H", "L0H1", "--sequences", "1", "--block", "4"),
    ],
    ids=lambda command: " ".join(command),
)
def test_commands_of_predictions_take_models_of_images_and_text(
    call: Run, command: tuple[str, ...], door: Door
) -> None:
    """Each command does with LLaVA what it does with a model of text."""
    done = call(*command, "-m", door("llava"), "--width", "80")
    assert done.returncode == 0, done.stderr
    assert "vector" not in done.stdout


# What a config says of how it is run


FLAGS = {
    "return_dict": False,
    "use_return_dict": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "torchscript": True,
    "use_cache": False,
}


@pytest.mark.parametrize("name", sample(["llama", "llava", "marian decoder", "bert and gpt2"], 1))
def test_flags_of_a_config_change_nothing(name: str, tmp_path: Path, door: Door, call: Run) -> None:
    """Tuples, attentions, hidden states and no cache, asked for by config.json and by the configs inside it."""
    folder = shutil.copytree(door(name), tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    for part in ("text_config", "encoder", "decoder"):
        if part in values:
            values[part] |= FLAGS
    edit_json(folder / "config.json", **values | FLAGS)
    writing = {
        "return_dict_in_generate": True,
        "num_beams": 2,
        "num_return_sequences": 2,
        "stop_strings": "a",
    }
    edit_json(folder / "generation_config.json", **writing, cache_implementation="quantized")
    written = () if name == "bert and gpt2" else ("--generate", "3")
    for options in ((), written, ("--weights", "gradient")):
        plain, found = (
            call("show", SENTENCE, *options, "-m", path, "--json") for path in (door(name), folder)
        )
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["maps"] == json.loads(plain.stdout)["maps"]


@pytest.mark.parametrize(
    ("name", "attention", "key"),
    [
        ("llama", "flash_attention_2", "attn_implementation"),
        ("llama", "kernels-community/flash-attn3", "_attn_implementation"),
        ("t5 encoder", "flash_attention_3", "_attn_implementation"),
        ("llava", "flash_attention_2", "_attn_implementation"),
    ],
)
def test_a_config_that_asks_for_other_attention(
    name: str, attention: str, key: str, tmp_path: Path, door: Door
) -> None:
    """The model is run with SDPA, whose weights are the same, and a note says so; inside a nested config too."""
    folder = shutil.copytree(door(name), tmp_path / "model")
    values = json.loads((folder / "config.json").read_text())
    if "text_config" in values:
        changes = {"text_config": {**values["text_config"], key: attention}}
    else:
        changes = {key: attention}
    edit_json(folder / "config.json", **changes)
    capture = capture_folder(folder)
    np.testing.assert_array_equal(
        capture.maps[0].weights, capture_folder(door(name)).maps[0].weights
    )
    assert any(attention in note and "SDPA" in note for note in capture.notes)


# Folders of another layout, or that lack something


@pytest.mark.parametrize("path", sample(["0_Transformer", "parts/encoder", "1_Dense"], 1))
def test_the_transformer_of_an_older_sentence_model_is_read(
    path: str, tmp_path: Path, minilm: Path
) -> None:
    """Sentence-transformers lists its parts in modules.json; the transformer may be in any folder inside."""
    shutil.copytree(minilm, tmp_path / "model" / path)
    modules = [
        {"idx": 0, "name": "0", "path": path, "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    expected, found = capture_folder(minilm).maps[0], capture_folder(tmp_path / "model").maps[0]
    np.testing.assert_array_equal(found.weights, expected.weights)


@pytest.mark.parametrize("path", ["../elsewhere", "/", "no/such"])
def test_a_list_of_parts_that_leads_elsewhere_is_refused(
    path: str, tmp_path: Path, minilm: Path, call: Run
) -> None:
    """Nothing outside of a model's folder is opened."""
    shutil.copytree(minilm, tmp_path / "elsewhere")
    (tmp_path / "model").mkdir()
    modules = [{"path": path, "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    require_line(
        call("show", SENTENCE, "-m", tmp_path / "model"), 3, "modules.json names the folder"
    )


def without_tokenizer(source: Path, target: Path) -> Path:
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns("*token*"))


@pytest.mark.parametrize("name", sample(["llama", "bart decoder", "clip"], 1))
def test_a_tokenizer_of_another_folder(name: str, tmp_path: Path, door: Door, call: Run) -> None:
    """A checkpoint without a tokenizer is told so, and reads with one from elsewhere as with its own."""
    folder = without_tokenizer(door(name), tmp_path / "model")
    require_line(call("show", SENTENCE, "-m", folder), 3, "has no tokenizer", "--tokenizer FOLDER")
    plain = call("show", SENTENCE, "-m", door(name), "--engine", "torch", "--json")
    found = call("show", SENTENCE, "-m", folder, "--tokenizer", door(name), "--json")
    assert json.loads(found.stdout)["maps"] == json.loads(plain.stdout)["maps"]


def test_tokenizers_that_are_of_no_use(tmp_path: Path, door: Door, call: Run) -> None:
    """One line for one with more tokens than the model, for none there, and where no model takes one."""
    small = tmp_path / "small"
    make_model("LlamaForCausalLM", **{**SIZES, "vocab_size": 200}).save_pretrained(small)
    done = call("show", SENTENCE, "-m", small, "--tokenizer", door("llama"))
    require_line(done, 3, "knows 4099 tokens", "embeddings for 200")
    require_line(
        call("show", SENTENCE, "-m", door("llama"), "--tokenizer", small), 3, "has no tokenizer"
    )
    require_line(
        call("show", SENTENCE, "--tokenizer", door("llama")), 3, "builtin takes no adapter"
    )
    call("capture", SENTENCE, "-o", "a.attn")
    require_line(call("show", "--from", "a.attn", "--tokenizer", small), 2, "--tokenizer")
    require_line(call("explain", "--score", "dot", "--adapter", small), 2, "--adapter")


@pytest.mark.parametrize("name", ["llama", "bart", "bert"])
def test_tokens_without_an_embedding_are_told(name: str, tmp_path: Path, call: Run) -> None:
    """A folder whose own tokenizer makes tokens that its model does not know, in the text or in the target."""
    build = {
        "llama": partial(make_model, "LlamaForCausalLM", **{**SIZES, "vocab_size": 2048}),
        "bart": partial(
            make_model,
            "BartForConditionalGeneration",
            **{**BART, "vocab_size": 2048, "eos_token_id": 1},
        ),
        "bert": partial(make_model, "BertModel", vocab_size=2048, **ENCODER),
    }
    folder = save(build[name](), tmp_path / "model")
    words = ("has embeddings for the tokens 0 to 2047", "--tokenizer FOLDER")
    long = "The unbelievable circumnavigation of a melancholy archipelago"
    require_line(call("show", long, "-m", folder), 3, *words)
    if name == "bart":
        require_line(call("show", "the", "--target", long, "-m", folder), 3, *words)
    assert (
        call(
            "show", "the", "-m", folder, *(["--target", "the"] if name == "bart" else [])
        ).returncode
        == 0
    )


def test_gguf_and_single_files_are_told(tmp_path: Path, door: Door, call: Run) -> None:
    """One line for a .gguf, for a folder of them with a config or without, and for a file of weights."""
    (tmp_path / "only").mkdir()
    folder = shutil.copytree(
        door("llama"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")
    )
    for place in (folder, tmp_path / "only"):
        (place / "model-q4.gguf").write_bytes(b"GGUF")
        require_line(call("show", SENTENCE, "-m", place), 3, "GGUF", "only safetensors are read")
    require_line(
        call("show", SENTENCE, "-m", folder / "model-q4.gguf"),
        3,
        "GGUF",
        "only safetensors are read",
    )
    require_line(call("show", SENTENCE, "-m", door("llama") / "model.safetensors"), 3, "is a file")


PACKAGES = {  # a tokenizer's class, a vocabulary of its kind, and the package that reads it
    "T5Tokenizer": ("spiece.model", b"\n\x07\n\x01a", "sentencepiece"),
    "LlamaTokenizer": ("tokenizer.model", b"\n\x07\n\x01a", "sentencepiece"),
    "MarianTokenizer": ("source.spm", b"\n\x07\n\x01a", "sentencepiece"),
    "PreTrainedTokenizerFast": ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken"),
    "XLMTokenizer": ("vocab.json", b'{"a": 0}', "sacremoses"),
}


def hide_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the library find no such package, whether it is installed or not."""
    find = importlib.util.find_spec

    def find_others(name: str, *rest: Any) -> Any:
        return None if name.split(".")[0] == package else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_others)
    monkeypatch.setitem(sys.modules, package, None)
    for check in vars(import_utils).values():
        if package in getattr(check, "__name__", "") and hasattr(check, "cache_clear"):
            check.cache_clear()


@pytest.mark.parametrize("kind", sample(PACKAGES, 5))
def test_packages_that_a_tokenizer_needs_are_told(
    kind: str, tmp_path: Path, door: Door, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the package that reads a vocabulary, where it is not installed."""
    file, data, package = PACKAGES[kind]
    hide_package(package, monkeypatch)
    folder = without_tokenizer(door("llama"), tmp_path / "model")
    (folder / file).write_bytes(data)
    (folder / "merges.txt").write_text("#version\n")
    (folder / "target.spm").write_bytes(data)
    (folder / "vocab.json").write_text('{"a": 0}')
    if kind == "PreTrainedTokenizerFast":
        for other in ("merges.txt", "target.spm", "vocab.json"):
            (folder / other).unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    require_line(call("show", SENTENCE, "-m", folder), 3, f"pip install {package}'")


# Signs for a space


PIECES = ["<unk>", "S", "T", "h", "e", "c", "a", "t", "Th"]  # S: the sign for a space


def spaced_tokenizer(kind: str) -> Any:
    """A tokenizer of single letters whose sign for a space may stand alone."""
    sign = "Ġ" if kind.startswith("byte") else "▁"
    pieces = [piece.replace("S", sign) for piece in PIECES]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    if kind.startswith("unigram"):
        scores = [(piece, -2.0 - len(piece)) for piece in pieces]
        tokenizer = Tokenizer(models.Unigram(scores, 0, False))
    else:
        tokenizer = Tokenizer(models.BPE(numbers, [("T", "h")], unk_token="<unk>"))
    if sign == "Ġ":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=kind == "byte-level, trimmed")
    elif kind == "bpe, normalised":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            prepend_scheme="first" if "first" in kind else "always"
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


KINDS = [
    "unigram, first",
    "unigram, always",
    "bpe",
    "bpe, normalised",
    "byte-level, trimmed",
    "byte-level",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["That cat", "a  cat", "cat ", "c t\u2581 t"])
def test_a_sign_for_a_space_is_not_the_next_letter(kind: str, text: str) -> None:
    """A sign that stands alone is the space, or nothing where the text has none; each letter is shown once."""
    tokenizer = spaced_tokenizer(kind)
    if kind.startswith("byte"):
        text = text.replace("\u2581", "")  # it would be three bytes, each unknown
    encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    tokens, _ = make_tokens(tokenizer, encoded, [text])
    letters = "".join(token.text for token in tokens if token.text.strip())
    assert letters == text.replace(" ", "")
    places = [place for token in tokens for place in range(token.start, token.end)]
    assert places == sorted(set(places))
    signs = [token for token in tokens if tokenizer.convert_ids_to_tokens(token.id) in ("▁", "Ġ")]
    assert signs
    assert all(token.text in (" ", "", "▁") for token in signs)
    assert sum(token.text == " " for token in signs) == text.count(" ")


def test_a_sign_before_a_special_token_is_a_space() -> None:
    """A special token stands nowhere: the space at the end of a text before one is still a space."""
    tokenizer = spaced_tokenizer("bpe")
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    ending = processors.TemplateProcessing(
        "$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    tokenizer.backend_tokenizer.post_processor = ending
    encoded = tokenizer("a t ", return_offsets_mapping=True, return_special_tokens_mask=True)
    tokens, _ = make_tokens(tokenizer, encoded, ["a t "])
    assert [token.text for token in tokens] == ["", "a", " ", "t", " ", "</s>"]


# Adapters


TARGETS = {  # an adapter for a model of each kind: its task, the parts that it changes, its class in PEFT
    "llama": ("CAUSAL_LM", ["q_proj", "o_proj"], "LoraConfig"),
    "bert": ("FEATURE_EXTRACTION", ["query", "key"], "LoraConfig"),
    "gpt2": ("CAUSAL_LM", ["c_attn"], "LoraConfig"),
    "t5": ("SEQ_2_SEQ_LM", ["q"], "LoraConfig"),
    "bert classes": ("SEQ_CLS", ["query"], "LoraConfig"),
    "llama scaled": (None, ["k_proj"], "IA3Config"),
}
BASES: dict[str, Build] = {
    "llama": partial(make_model, "LlamaForCausalLM", **SIZES),
    "bert": partial(make_model, "BertModel", vocab_size=FULL, **ENCODER),
    "gpt2": lambda: transformers.GPT2LMHeadModel(gpt2_config()),
    "t5": partial(make_model, "T5ForConditionalGeneration", **T5),
    "bert classes": partial(make_model, "BertModel", vocab_size=FULL, **ENCODER),
    "llama scaled": partial(make_model, "LlamaForCausalLM", **SIZES),
}


def make_adapter(name: str, folder: Path) -> tuple[Path, Path]:
    """The folders of a base model and of an adapter for it, whose weights are random."""
    import peft

    task, targets, kind = TARGETS[name]
    base, adapter = folder / "base", folder / "adapter"
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses what the library will remove
        torch.manual_seed(0)
        save(BASES[name](), base, ending_tokenizer)
        options = {"feedforward_modules": []} if kind == "IA3Config" else {"r": 3, "lora_alpha": 6}
        model = BASES[name]()
        if task == "SEQ_CLS":
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=5
            )
        else:
            model = type(model).from_pretrained(base)
        wrapped = peft.get_peft_model(
            model, getattr(peft, kind)(task_type=task, target_modules=targets, **options)
        )
        for part, parameter in wrapped.named_parameters():
            if "lora_" in part or "ia3_" in part:
                parameter.data.normal_(std=0.5)
        wrapped.save_pretrained(adapter)
    return base, adapter


def merge_by_hand(base: Path, adapter: Path, target: Path) -> Path:
    """The base model with its weights changed by hand, in a folder of its own: W + 2 B A, or W scaled by row."""
    tensors = load_file(base / "model.safetensors")
    changes = {
        name.removeprefix("base_model.model."): part
        for name, part in load_file(adapter / WEIGHTS).items()
    }
    done = set()
    for name, change in changes.items():
        part, _, how = name.partition(".lora_A.")
        if how:
            delta = 2 * changes[f"{part}.lora_B.weight"] @ change
        elif name.endswith(".ia3_l"):
            part = name.removesuffix(".ia3_l")
        else:
            continue
        (key,) = [key for key in tensors if f"{part}.weight".endswith(key)]
        if how:
            tensors[key] += delta.T if "c_attn" in part else delta
        else:
            tensors[key] *= change.reshape(-1, 1)
        done.add(key)
    assert done
    shutil.copytree(base, target)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


@pytest.mark.numeric
@pytest.mark.parametrize("name", sample(TARGETS, 2))
def test_adapters_are_applied(name: str, tmp_path: Path) -> None:
    """The folder of an adapter reads as its base model does with its weights changed by hand, and not as without."""
    base, adapter = make_adapter(name, tmp_path)
    target = {"target": "The dog"} if name == "t5" else {}
    plain, expected = (
        capture_folder(base, **target),
        capture_folder(merge_by_hand(base, adapter, tmp_path / "merged"), **target),
    )
    found = capture_folder(adapter, **target)
    for ours, theirs in zip(found.maps, expected.maps, strict=True):
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-4, atol=1e-5)
    assert np.abs(found.maps[0].weights - plain.maps[0].weights).max() > 1e-3
    assert any("adapter" in note for note in found.notes)


def test_adapters_beside_and_apart_from_their_base(tmp_path: Path, call: Run) -> None:
    """The same picture from an adapter, from --adapter with and without --model, and from one folder with both."""
    base, adapter = make_adapter("llama", tmp_path)
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for file in ("adapter_config.json", WEIGHTS):
        shutil.copy(adapter / file, both)
    ways = [
        ("-m", adapter),
        ("-m", base, "--adapter", adapter),
        ("--adapter", adapter),
        ("-m", both),
    ]
    documents = [json.loads(call("show", SENTENCE, *way, "--json").stdout)["maps"] for way in ways]
    assert documents[1:] == documents[:1] * 3
    assert json.loads(call("show", SENTENCE, "-m", base, "--json").stdout)["maps"] != documents[0]
    done = call("compare", SENTENCE, "-m", base, "-m", adapter)
    assert done.returncode == 0, done.stderr
    twice = call("compare", SENTENCE, "-m", base, "-m", base, "--adapter", adapter, "--json")
    assert json.loads(twice.stdout)


def test_a_classifier_of_an_adapter_is_read(tmp_path: Path, call: Run) -> None:
    """The classes that an adapter brings are those that it predicts."""
    _, adapter = make_adapter("bert classes", tmp_path)
    response = load_model(str(adapter), predicts=True).respond(Prompt(SENTENCE), [NOTHING])
    assert response.kind == "class"
    assert response.outputs.shape == (1, 5)
    assert "LABEL_" in call("attribute", SENTENCE, "-m", adapter).stdout


def test_adapters_without_peft_are_told(
    tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says what the folder is and what to install, wherever the adapter lies; without it nothing is drawn."""
    base, adapter = make_adapter("llama", tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for file in ("adapter_config.json", WEIGHTS):
        shutil.copy(adapter / file, both)
    for way in (("-m", adapter), ("-m", both)):
        require_line(call("show", SENTENCE, *way), 3, "PEFT adapter", "pip install peft")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": None}, "does not name its base model"),
        ({"base_model_name_or_path": "/no/such/folder"}, "which is not there"),
        ({"base_model_name_or_path": "some/model-of-a-hub"}, "not in the local cache"),
        ({"r": 10**9}, "rank of 1,000,000,000"),
        ({"peft_type": "NO_SUCH_TYPE"}, "does not fit"),
        ({"target_modules": ["no_such_part"]}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "has no place for"),
        ({"target_modules": ["q_proj", "o_proj", "k_proj"]}, "lacks 6 of its weights"),
    ],
)
def test_adapters_that_cannot_be_applied_are_told(
    tmp_path: Path, call: Run, changes: dict[str, Any], words: str
) -> None:
    """One line says what is the matter with an adapter."""
    _, adapter = make_adapter("llama", tmp_path)
    edit_json(adapter / "adapter_config.json", **changes)
    require_line(call("show", SENTENCE, "-m", adapter), 3, words)


def test_adapters_of_another_base_are_told(tmp_path: Path, call: Run, door: Door) -> None:
    """One line for a base of other sizes, of another kind, with fewer layers, and for what is no adapter."""
    _, adapter = make_adapter("llama", tmp_path)
    wide = save(make_model("LlamaForCausalLM", **{**SIZES, "hidden_size": 96}), tmp_path / "wide")
    short = save(
        make_model("LlamaForCausalLM", **{**SIZES, "num_hidden_layers": 1}), tmp_path / "short"
    )
    require_line(
        call("show", SENTENCE, "-m", wide, "--adapter", adapter), 3, "does not fit its base model"
    )
    require_line(
        call("show", SENTENCE, "-m", short, "--adapter", adapter), 3, "no adapter of", "layers.1"
    )
    require_line(
        call("show", SENTENCE, "-m", door("t5 encoder"), "--adapter", adapter), 3, "no adapter of"
    )
    require_line(call("show", SENTENCE, "-m", wide, "--adapter", short), 3, "is no adapter")
    require_line(
        call("show", SENTENCE, "-m", wide, "--adapter", tmp_path / "none"), 3, "no adapter folder"
    )


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path: Path, call: Run) -> None:
    """Only safetensors are read, beside the base too, where the library would read either."""
    base, adapter = make_adapter("llama", tmp_path)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    require_line(call("show", SENTENCE, "-m", base, "--adapter", adapter), 3, "safetensors only")
    for file in ("adapter_config.json", "adapter_model.bin"):
        shutil.copy(adapter / file, base)
    require_line(call("show", SENTENCE, "-m", base), 3, "safetensors only")
