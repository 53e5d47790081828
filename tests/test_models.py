"""Backends: eager transformers as the oracle, names and downloads, and what is refused."""

import errno
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from attnviz.errors import InputError, ModelError, UsageError
from attnviz.lm import store
from attnviz.models import load_model, names
from attnviz.models.checks import find_torch_device
from attnviz.models.huggingface import loading
from attnviz.request import Placement, Prompt, Request
from attnviz.selection import parse_heads, parse_numbers
from tests.commands import require_failure
from tests.conftest import ROOT, SENTENCE, Run, Tiny
from tests.tiny import load_in_torch, save
from tests.tolerance import close

pytestmark = pytest.mark.numeric

EMOJI = "Unbelievably, the naïve tokenizer's subwords misbehave — 3.14159 😀 ok."

WIDTH = 384  # of MiniLM: the longest sums are over so many terms


@pytest.fixture(scope="session")
def gpt2(tiny: Tiny) -> Path:
    return tiny("gpt2")


@pytest.fixture(scope="session")
def llama(tiny: Tiny) -> Path:
    return tiny("llama")


@pytest.fixture(scope="session")
def albert(tiny: Tiny) -> Path:
    return tiny("albert")


def eager(folder: Path, text: str) -> np.ndarray:
    """Attention weights (layer, head, query, key) by the library's own eager path."""
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    inputs = AutoTokenizer.from_pretrained(folder)(
        text, return_tensors="pt", return_token_type_ids=False
    )
    with torch.inference_mode():
        return torch.stack(model(**inputs, output_attentions=True).attentions)[:, 0].numpy()


@pytest.mark.parametrize("architecture", ["minilm", "gpt2", "llama", "albert"])
@pytest.mark.parametrize("text", [SENTENCE, EMOJI])
def test_weights_equal_eager(architecture: str, text: str, request: pytest.FixtureRequest) -> None:
    """Every weight of every layer and head: BERT, GPT-2, Llama with grouped heads, ALBERT (shared)."""
    folder = request.getfixturevalue(architecture)
    found = load_model(str(folder)).capture(Prompt(text), Request()).maps[0]
    expected = eager(folder, text)
    np.testing.assert_allclose(found.weights, expected, **close(WIDTH))
    causal = architecture in ("gpt2", "llama")
    np.testing.assert_array_equal(
        found.visible[0, 0], np.tri(len(found.keys), dtype=bool) | (not causal)
    )


def test_json_of_minilm_equals_eager(call: Run, minilm: Path) -> None:
    """Attnviz show --layers all --heads all --json: maps[0].weights[layer][head][query][key]."""
    done = call("show", SENTENCE, "-m", minilm, "--layers", "all", "--heads", "all", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        np.array(document["maps"][0]["weights"]), eager(minilm, SENTENCE), **close(WIDTH)
    )
    assert [token["text"] for token in document["maps"][0]["keys"]][:3] == ["[CLS]", "The", "cat"]


def test_chosen_layers_and_heads_are_those(minilm: Path) -> None:
    """Only what is asked for is kept, in the order asked for; named heads one map a layer."""
    model = load_model(str(minilm))
    whole = model.capture(Prompt(SENTENCE), Request()).maps[0].weights
    some = model.capture(Prompt(SENTENCE), Request(parse_numbers("-1,2"), parse_heads("7,0"))).maps[
        0
    ]
    assert (some.layers, some.heads) == ((5, 2), (7, 0))
    np.testing.assert_allclose(some.weights, whole[[5, 2]][:, [7, 0]], **close(WIDTH))
    named = model.capture(Prompt(SENTENCE), Request(heads=parse_heads("L5H3,L2H1"))).maps
    assert [(part.layers, part.heads) for part in named] == [((5,), (3,)), ((2,), (1,))]
    np.testing.assert_allclose(named[1].weights[0, 0], whole[2, 1], **close(WIDTH))
    with pytest.raises(UsageError, match=r"layer 6.*0-5"):
        model.capture(Prompt(SENTENCE), Request(parse_numbers("6")))


@pytest.mark.exact
def test_capture_goes_through_sdpa_not_eager(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own eager attention is never called, and no attentions are asked of it."""
    from transformers.models.bert import modeling_bert

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("eager attention was called")

    monkeypatch.setattr(modeling_bert, "eager_attention_forward", forbidden)
    assert load_model(str(minilm)).capture(Prompt(SENTENCE), Request()).maps[0].weights.shape == (
        6,
        12,
        13,
        13,
    )


@pytest.mark.exact
def test_tokens_are_slices_of_the_text(minilm: Path, gpt2: Path) -> None:
    """For every backend each token's text is text[start:end] without space around it, special ones by name."""
    for name in (str(minilm), str(gpt2), "builtin"):
        tokens = (
            load_model(name)
            .capture(Prompt(EMOJI), Request(layers=parse_numbers("0")))
            .maps[0]
            .queries
        )
        assert tokens[0].special
        for token in tokens:
            assert token.special or token.text == EMOJI[token.start : token.end]
        assert "".join(
            dict.fromkeys(token.text for token in tokens if not token.special)
        ).startswith("Unbelievably,")


def test_half_precision_models_are_read(llama: Path) -> None:
    """A bfloat16 model gives weights near those in float32, rows summing to 1."""
    exact = load_model(str(llama)).capture(Prompt(SENTENCE), Request()).maps[0]
    rough = (
        load_model(str(llama), placement=Placement(dtype="bfloat16"))
        .capture(Prompt(SENTENCE), Request())
        .maps[0]
    )
    np.testing.assert_allclose(rough.weights.sum(-1), 1, atol=1e-5)
    assert np.abs(rough.weights[0] - exact.weights[0]).max() < 0.05


def test_builtin_types_agree() -> None:
    """float64 in NumPy and bfloat16 in torch are the float32 result up to their precision."""
    exact = load_model().capture(Prompt(SENTENCE), Request()).maps[0].weights
    double = (
        load_model(placement=Placement(dtype="float64"))
        .capture(Prompt(SENTENCE), Request())
        .maps[0]
        .weights
    )
    rough = (
        load_model(placement=Placement("cpu", "bfloat16"))
        .capture(Prompt(SENTENCE), Request())
        .maps[0]
        .weights
    )
    np.testing.assert_allclose(double, exact, atol=1e-5)
    np.testing.assert_allclose(rough, exact, atol=0.1)


@pytest.mark.exact
@pytest.mark.parametrize("name", ["builtin", "minilm"])
def test_long_texts_are_refused_or_cut(name: str, minilm: Path) -> None:
    """Both numbers are told; --truncate takes the first ones, and the capture notes it."""
    model = load_model(str(minilm) if name == "minilm" else name)
    long = "word " * 600
    with pytest.raises(InputError, match=r"60\d tokens.*512.*--truncate"):
        model.capture(Prompt(long), Request())
    cut = model.capture(Prompt(long), Request(layers=parse_numbers("0"), truncate=True))
    assert len(cut.maps[0].keys) == 512
    assert "512" in cut.notes[0]


def test_typed_special_tokens_are_text() -> None:
    """<bos> in a text for the built-in model is five characters, not the token."""
    tokens = load_model().capture(Prompt("a <bos> b"), Request()).maps[0].keys
    assert [token.special for token in tokens].count(True) == 1


# Names


@pytest.mark.parametrize(
    ("name", "is_path"),
    [
        ("./m", True),
        ("/no/such/dir", True),
        ("~/m", True),
        ("a/b/c", True),
        ("a/b", False),
        ("gpt2", False),
        ("bert-base", False),
    ],
)
def test_paths_and_repositories(name: str, is_path: bool) -> None:
    """What cannot be a repository's name is a path."""
    assert names.looks_like_path(name) is is_path


@pytest.mark.exact
@pytest.mark.usefixtures("hub_cache")
def test_an_alias_is_found_in_the_cache(call: Run, run: Run) -> None:
    """bert-base draws when google-bert/bert-base-uncased is in the local cache, without a network."""
    done = call("show", SENTENCE, "-m", "bert-base", "--width", "80")
    assert done.returncode == 0, done.stderr
    assert "bert-base · layer 5 · mean over heads" in done.stdout
    listed = run("models").stdout
    assert " * bert-base " in listed
    assert "   gpt2 " in listed


@pytest.mark.exact
def test_a_cache_that_cannot_be_read_holds_nothing(
    call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models are listed, and one that is not there is told, where the home folder is somebody else's."""

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setenv("HF_HUB_CACHE", "/home/else")
    monkeypatch.setattr(Path, "glob", refuse)
    assert "   bert-base " in call("models").stdout
    monkeypatch.setattr(Path, "read_text", refuse)
    require_failure(call("show", SENTENCE, "-m", "minilm"), 3, "not in the local cache")


@pytest.fixture
def hub(minilm: Path) -> Iterator[tuple[str, list[str]]]:
    """A hub on the loopback with one repository; its address, and the paths asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bool) -> None:
            asked.append(self.path)
            file = minilm / self.path.rsplit("/", 1)[-1]
            headers = {"Content-Type": "application/json"}
            if self.path.startswith("/api/models/some/model/tree/"):
                here = [p.name for p in minilm.iterdir() if p.is_file()]
                files = [*here, "pytorch_model.bin", "onnx/model.safetensors", "x.py"]
                data = json.dumps(
                    [{"type": "file", "path": name, "size": 1, "oid": name} for name in files]
                ).encode()
            elif self.path.startswith("/api/models/some/model"):
                data = json.dumps({"id": "some/model", "sha": "1" * 40, "siblings": []}).encode()
            elif self.path.startswith("/some/model/resolve/") and file.is_file():
                data, headers = (
                    file.read_bytes(),
                    {"ETag": f'"{file.name}"', "X-Repo-Commit": "1" * 40},
                )
            else:
                data, headers = b"{}", {"X-Error-Code": "RepoNotFound"}
            self.send_response(404 if "X-Error-Code" in headers else 200)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer(True)

        def do_HEAD(self) -> None:
            self.answer(False)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def use_hub(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the library of the hub download from an address into a folder."""
    constants = {
        "HF_HUB_CACHE": str(cache),
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


@pytest.mark.exact
def test_a_cache_that_cannot_be_written_to(
    call: Run, hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that finds no folder to write into, as in a home folder of somebody else, is one line."""
    (tmp_path / "home").write_text("a file, so that nobody can make a folder in it, root neither")
    use_hub(hub[0], tmp_path / "home" / "hub", monkeypatch)
    done = call("show", SENTENCE, "-m", "some/model")
    told = f"cannot write {tmp_path}/home/hub"
    require_failure(done, 3, "some/model", "cannot be downloaded", told, "set HF_HOME")


@pytest.mark.exact
def test_a_hub_model_is_downloaded_once(
    call: Run, hub: tuple[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first use downloads config, tokenizer and safetensors only; the second asks the network for nothing."""
    address, asked = hub
    use_hub(address, tmp_path / "home" / "hub", monkeypatch)
    first = call("show", SENTENCE, "-m", "some/model")
    assert first.returncode == 0, first.stderr
    fetched = {path.rsplit("/", 1)[-1] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not any(path.endswith((".bin", ".py")) or "onnx" in path for path in asked)
    asked.clear()
    second = call("show", SENTENCE, "-m", "some/model")
    assert second.stdout == first.stdout
    assert asked == []


def test_what_is_downloaded() -> None:
    """What a model needs to run, chat templates too; no pickles, no code, no folders."""
    files = ["config.json", "vocab.txt", "a.model", "b.safetensors", "chat_template.jinja"]
    other = ["pytorch_model.bin", "x.py", "onnx/model.safetensors", "README.md"]
    assert [*filter_repo_objects([*files, *other], **names.PARTS)] == files


@pytest.mark.exact
def test_a_repository_that_is_not_there(
    run: Run, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    """A hub that knows no such model gives one line and exit code 3."""
    environment = {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = run("show", SENTENCE, "-m", "no/such", **environment)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "not on the hub" in done.stderr


@pytest.mark.exact
@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_an_unreachable_model_is_told_at_once(
    run: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    """Offline or refused: one line that says what to do, before anything of a model is loaded."""
    settings = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), **environment}
    done = run("show", SENTENCE, "-m", "bert-base", PYTHONPROFILEIMPORTTIME="1", **settings)
    lines = done.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip() for line in lines if line.startswith("import time:")}
    (told,) = (line for line in lines if not line.startswith("import time:"))
    assert done.returncode == 3
    assert "google-bert/bert-base-uncased" in told
    assert "--model builtin" in told
    assert "huggingface_hub" in imported
    assert not imported & {"torch", "transformers"}


# What is refused


def copy(source: Path, target: Path, *, without: str = "") -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(without) if without else None)
    return target


def edit(folder: Path, **changes: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def refuse(folder: Path, told: str) -> None:
    with pytest.raises(ModelError, match=told) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.exact
def test_incomplete_folders_are_refused(tmp_path: Path, minilm: Path) -> None:
    """No folder, no config, no weights, no tokenizer: each has its line."""
    refuse(tmp_path / "nothing", "no model folder")
    refuse(copy(minilm, tmp_path / "a", without="config.json"), "config.json: no such file")
    refuse(copy(minilm, tmp_path / "b", without="*.safetensors"), "no weights")
    folder = copy(minilm, tmp_path / "c", without="*token*")
    (folder / "vocab.txt").unlink()
    refuse(folder, "tokenizer")


@pytest.mark.exact
def test_a_folder_that_may_not_be_read_is_refused(
    minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may read every folder, so the refusal of the system is made by hand."""

    def refuse_to_look(folder: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "config.json"))

    monkeypatch.setattr("attnviz.models.folders.holds_adapter", refuse_to_look)
    refuse(minilm, "config.json: permission denied")


@pytest.mark.exact
def test_pickles_are_refused(tmp_path: Path, minilm: Path) -> None:
    """A .bin, which is a pickle and can run code, is not read, however it is named."""
    folder = copy(minilm, tmp_path / "a", without="*.safetensors")
    torch.save(
        BertModel(BertConfig(num_hidden_layers=1)).state_dict(), folder / "pytorch_model.bin"
    )
    refuse(folder, "pickle")
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")
    refuse(folder, "damaged")


@pytest.mark.exact
def test_custom_code_is_refused_and_not_run(tmp_path: Path, minilm: Path) -> None:
    """A model that brings its own code is refused without a question, and the code is not run."""
    folder = copy(minilm, tmp_path / "a")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for kind in ("evil", "bert"):
        edit(
            folder,
            model_type=kind,
            auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
        )
        refuse(folder, "code of its own")
    assert not (tmp_path / "ran").exists()


@pytest.mark.exact
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000"),
        ({"inner_group_num": 10**6}, "inner_group_num"),
        ({"depths": [2, 10**6]}, "depths"),
        ({"vocab_size": 10**9}, "describes .* parameters"),
        ({"hidden_size": 3 * 10**6}, "describes .* parameters"),
        ({"intermediate_size": -5}, "cannot be built"),
        ({"num_attention_heads": 7}, "cannot be"),
        ({"model_type": "no-such-type"}, "cannot be used"),
    ],
)
def test_absurd_configs_are_refused(
    tmp_path: Path,
    minilm: Path,
    changes: dict[str, object],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sizes that the weights cannot fill are refused before anything is built from them."""
    monkeypatch.setattr(loading, "load_weights", lambda *_: pytest.fail("the model is built"))
    refuse(edit(copy(minilm, tmp_path / "a"), **changes), told)


@pytest.mark.exact
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, minilm: Path) -> None:
    """Parameters that the file lacks are never filled with random numbers, and broken JSON is told."""
    folder = copy(minilm, tmp_path / "a")
    save_file({"x": torch.zeros(20_000_000)}, folder / "model.safetensors")
    refuse(folder, "lack")
    (folder / "config.json").write_text("{")
    refuse(folder, "not JSON")


@pytest.mark.exact
def test_roberta_counts_its_positions_after_the_padding_row(tmp_path: Path) -> None:
    """A table of 20 places with padding at 1 holds 18 tokens: that many run, one more is refused, --truncate cuts."""
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=4096, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=20,
        pad_token_id=1,
    )  # fmt: skip
    model = load_model(str(save(RobertaModel(config), tmp_path / "roberta")))
    assert len(model.capture(Prompt("the" + " the" * 16), Request()).maps[0].keys) == 18
    with pytest.raises(InputError, match=r"19 tokens.*reads 18"):
        model.capture(Prompt("the" + " the" * 17), Request())
    assert (
        len(model.capture(Prompt("the" + " the" * 30), Request(truncate=True)).maps[0].keys) == 18
    )


@pytest.mark.exact
def test_weights_that_are_not_numbers_are_told(tmp_path: Path, minilm: Path) -> None:
    """NaN in the weights is the model's fault, not ours."""
    from safetensors.torch import load_file

    folder = copy(minilm, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.attention.self.query.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="cannot be used: some of its weights are not finite"):
        load_in_torch(folder).capture(Prompt(SENTENCE), Request())
    with pytest.raises(ModelError, match="are damaged: its attention is not a number"):
        load_model(str(folder)).capture(Prompt(SENTENCE), Request())


@pytest.mark.exact
def test_a_partial_cache_is_not_taken_as_whole(tmp_path: Path, minilm: Path) -> None:
    """Without its tokenizer or a part of its weights a cached folder is fetched anew."""
    assert names.is_whole(minilm)
    assert not names.is_whole(copy(minilm, tmp_path / "a", without="*.safetensors"))
    folder = copy(minilm, tmp_path / "b")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "model-00002-of-00002.safetensors"}}'
    )
    assert not names.is_whole(folder)
    folder = copy(minilm, tmp_path / "c", without="tokenizer.json")
    (folder / "vocab.txt").unlink()
    assert not names.is_whole(folder)


def test_a_device_that_is_not_there() -> None:
    """--device names the devices that there are."""
    with pytest.raises(UsageError, match=r"'cuda:99'.*cpu"):
        load_model(placement=Placement("cuda:99"))


@pytest.mark.cuda
@pytest.mark.parametrize("name", ["builtin", "minilm"])
def test_cuda_equals_cpu(name: str, minilm: Path) -> None:
    """The built-in model and MiniLM give the same on a GPU, to 1e-4."""
    name = str(minilm) if name == "minilm" else name
    cpu, cuda = (
        load_model(name, placement=Placement(device)).capture(Prompt(SENTENCE), Request())
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(cuda.maps[0].weights, cpu.maps[0].weights, rtol=0, atol=1e-4)


def test_the_package_is_where_the_tests_think() -> None:
    """The tests test this checkout."""
    assert store.BUILTIN == ROOT / "attnviz" / "lm" / "builtin"


# Apple's GPUs


@pytest.fixture
def pretend_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says that there is a GPU of Apple's, which is not used."""
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.exact
@pytest.mark.usefixtures("pretend_mps")
def test_mps_has_no_float64(call: Run, tiny: Tiny, tmp_path: Path) -> None:
    """One line, exit code 2, where float64 is asked for, and where a checkpoint is stored in it."""
    doubles = tmp_path / "doubles"
    model = AutoModelForCausalLM.from_pretrained(tiny("gpt2"), dtype=torch.float64)
    save(model, doubles)
    for options in (
        ["--device", "mps", "--dtype", "float64"],
        ["--device", "mps", "--dtype", "float64", "-m", tiny("gpt2")],
        ["--device", "mps", "-m", doubles],
    ):
        done = call("show", SENTENCE, *options)
        line = "error: mps has no float64: use --dtype float32, or --device cpu\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert find_torch_device("auto", "float64") == "cpu"
    assert find_torch_device("auto") == "mps"
