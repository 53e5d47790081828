"""Backends: what each has, the table of them, and what can be done with one that only captures."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import attnviz
from attnviz.errors import AttnvizError, ModelError
from attnviz.experiments.ablation import ablate
from attnviz.experiments.attribution import attribute
from attnviz.experiments.heads import measure_head_roles
from attnviz.experiments.intervention import PromptedModel
from attnviz.models import load_model, registry
from attnviz.models.base import (
    LoadOptions,
    Model,
    SupportsLosses,
    SupportsOperands,
    SupportsPredictions,
    SupportsSequences,
    require_losses,
    require_operands,
    require_predictions,
    require_token_sequences,
)
from attnviz.models.builtin import Builtin
from attnviz.models.checks import require_none
from attnviz.models.folders import Folders
from attnviz.models.huggingface.model import HuggingFace
from attnviz.models.whole_weights import make_whole_map
from attnviz.record import ATTENTION, Capture, Token
from attnviz.request import Placement, Prompt, Request
from attnviz.results.head_roles import Roles, SequenceSettings
from attnviz.selection import choose_kinds, note_windows, resolve_blocks
from tests.conftest import SENTENCE, Tiny

Call = Callable[..., subprocess.CompletedProcess[str]]
PROTOCOLS = Model, SupportsPredictions, SupportsOperands, SupportsSequences, SupportsLosses
LAYERS, HEADS = 2, 3
MARK = "toy.txt"


class Toy:
    """A model of words that only captures: a query attends alike to all words up to its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def capture(self, prompt: Prompt, request: Request) -> Capture:
        """See ``Model.capture``."""
        others = {"--pair": prompt.pair, "--target": prompt.target, "--chat": prompt.chat}
        require_none({**others, "--generate": prompt.generate}, f"{self.name} reads one plain text")
        if request.method != ATTENTION:
            raise ModelError(f"{self.name} has attention weights only: leave --weights out")
        choose_kinds(request.kinds, ("self",))
        words = [match.span() for match in re.finditer(r"\S+", prompt.text)]
        text = prompt.text
        tokens = tuple(Token.of("", at, span, False, text) for at, span in enumerate(words))
        sides = tokens, tokens
        visible = np.tri(len(tokens), dtype=bool)[None, None]
        rows = visible / visible.sum(-1, keepdims=True)
        request = request.resolve_window(sides)
        there = dict.fromkeys(range(LAYERS), range(HEADS))
        maps = []
        for layers, heads in resolve_blocks(request.layers, request.heads, there):
            shape = len(layers), len(heads), len(tokens), len(tokens)
            weights = np.broadcast_to(rows, shape).astype(np.float32)
            maps.append(make_whole_map(layers, heads, tokens, weights, visible, request))
        notes = note_windows(request.rows, request.columns, [sides]) if request.windowed else ()
        return Capture(self.name, text, tuple(maps), notes)


def recognise_toy(folder: Path) -> bool:
    """Tell a toy by its file."""
    return (folder / MARK).exists()


def load_toy(name: str, folders: Folders, options: LoadOptions) -> Toy:
    """Load a toy, which computes where it is told to as any other."""
    assert (folders.model / MARK).exists()
    assert options.placement == Placement()
    return Toy(name)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Add a row for toys to the table, and return the name of one, a folder."""
    row = registry.Backend("toy", recognise_toy, load_toy)
    monkeypatch.setattr(registry, "BACKENDS", (row, *registry.BACKENDS))
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / MARK).touch()
    return "./toy"


def own_members(kind: type) -> set[str]:
    """Return the names that a class defines itself, without those that protocols only declare."""
    bases = [base for base in kind.__mro__ if base not in PROTOCOLS]
    return {name for base in bases for name in vars(base)}


@pytest.mark.parametrize("kind", [Builtin, HuggingFace])
def test_the_shipped_backends_define_what_they_claim(kind: type) -> None:
    """No member of a protocol is left to the protocol, which would do nothing."""
    assert {protocol for protocol in PROTOCOLS if protocol in kind.__mro__} == {*PROTOCOLS}
    assert own_members(kind) >= {"capture", "respond", "operands", "read_vocabulary", "losses"}


@pytest.mark.parametrize("name", ["builtin", "llama", "albert", "t5"])
def test_loaded_models_support_what_their_backend_claims(name: str, tiny: Tiny) -> None:
    """A loaded model is an instance of each protocol; to ask for one runs nothing of the model."""
    model = load_model(name if name == "builtin" else str(tiny(name)))
    assert all(isinstance(model, protocol) for protocol in PROTOCOLS)
    for require in (require_predictions, require_operands, require_token_sequences, require_losses):
        assert require(model) is model


def test_every_folder_has_a_backend(tiny: Tiny, tmp_path: Path) -> None:
    """The first row that reads a folder is taken; the last reads or refuses what is left."""
    builtin, *_, last = registry.BACKENDS
    assert len({backend.name for backend in registry.BACKENDS}) == len(registry.BACKENDS)
    assert registry.find_backend(Path(attnviz.__file__).parent / "lm" / "builtin") is builtin
    assert registry.find_backend(tiny("albert")) is last
    assert registry.find_backend(tmp_path / "nowhere") is last


def test_a_folder_without_a_row_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A table without the last row says which folder nothing reads."""
    monkeypatch.setattr(registry, "BACKENDS", registry.BACKENDS[:1])
    with pytest.raises(ModelError, match=f"no backend of attnviz reads the model in {tmp_path}"):
        load_model(str(tmp_path))


def test_a_model_that_only_captures_is_a_model(
    toy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the one protocol that all have, and Python captures with it."""
    monkeypatch.chdir(tmp_path)
    model = load_model(toy)
    assert [protocol for protocol in PROTOCOLS if isinstance(model, protocol)] == [Model]
    found = attnviz.capture("a b c", toy, heads="L1H2").maps[0]
    np.testing.assert_allclose(found.weights[0, 0], np.tri(3) / [[1], [2], [3]], rtol=1e-6)


@pytest.mark.parametrize(
    "args",
    [
        ["show"],
        ["show", "-H", "L1H2", "--view", "rows", "--token", "cat"],
        ["show", "--view", "grid"],
        ["show", "--rows", "1:3"],
        ["show", "--weights", "rollout"],
        ["inspect"],
        ["compare", "--with", "The dog sat on the mat."],
        ["export", "--formats", "json,csv", "-o", "report"],
        ["capture", "-o", "run.attn"],
        ["capture", "--keep", "tiles", "-o", "run.attn"],
        ["capture", "--keep", "edges", "-o", "run.attn"],
    ],
    ids=" ".join,
)
def test_capture_is_enough_for_many_commands(args: list[str], toy: str, call: Call) -> None:
    """A picture, numbers, a file and a comparison need nothing of a backend but ``capture``."""
    command, *options = args
    done = call(command, SENTENCE, "-m", toy, *options)
    assert done.returncode == 0, done.stderr


def test_a_row_of_the_table_is_all_that_a_model_needs(toy: str, call: Call) -> None:
    """What is saved of it is shown as it was; it is compared with a model of another backend."""
    whole = "-l", "all", "-H", "all", "--json"
    shown = json.loads(call("show", SENTENCE, "-m", toy, *whole).stdout)
    assert shown["model"] == toy
    assert np.shape(shown["maps"][0]["weights"])[:2] == (LAYERS, HEADS)
    assert call("capture", SENTENCE, "-m", toy, "-o", "run.attn").returncode == 0
    saved = json.loads(call("show", "--from", "run.attn", *whole).stdout)
    assert saved["maps"] == shown["maps"]
    other = call("compare", SENTENCE, "-m", toy, "-m", "builtin", "--json")
    assert (other.returncode, other.stderr) == (0, "")


PREDICTIONS = "makes no predictions"
LOSSES = "does not tell how well it predicts the next tokens"


@pytest.mark.parametrize(
    ("args", "lack"),
    [
        (["attribute"], PREDICTIONS),
        (["attribute", "--verify"], PREDICTIONS),
        (["show", "--ablate", "L0H0"], PREDICTIONS),
        (["show", "--knock-out", "1->0"], PREDICTIONS),
        (["show", "--weights", "gradient"], PREDICTIONS),
        (["show", "--weights", "chefer"], PREDICTIONS),
        (["explain"], "does not give the queries, keys and values of its heads"),
        (["heads"], "does not read token ids, which are needed here"),
        (["heads", "--ablate"], LOSSES),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_a_model_lacks_is_one_line(args: list[str], lack: str, toy: str, call: Call) -> None:
    """A command that needs more than ``capture`` says what is lacking and what can be done."""
    command, *options = args
    text = [] if command == "heads" else [SENTENCE]
    done = call(command, *text, "-m", toy, *options)
    remaining = "its attention can still be shown, inspected, saved and compared"
    line = f"error: {toy} {lack}: choose another --model; {remaining}\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", line)


@pytest.mark.parametrize(
    ("options", "code", "line"),
    [
        (["--weights", "norm"], 3, "./toy has attention weights only: leave --weights out"),
        (["--pair", "Yes."], 2, "--pair: ./toy reads one plain text"),
        (["--generate", "3"], 2, "--generate: ./toy reads one plain text"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_what_a_backend_refuses_itself_is_one_line(
    options: list[str], code: int, line: str, toy: str, call: Call
) -> None:
    """A part of a prompt or a request that it cannot do is refused where it captures."""
    done = call("show", SENTENCE, "-m", toy, *options)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"error: {line}\n")


ROLES = Roles("toy", (), SequenceSettings(), 50, 1)


@pytest.mark.parametrize(
    ("run", "lack"),
    [
        (lambda model: attribute(model, Prompt(SENTENCE)), PREDICTIONS),
        (lambda model: PromptedModel.of(model, Prompt(SENTENCE)), PREDICTIONS),
        (
            lambda model: measure_head_roles(model, SequenceSettings(), [SENTENCE]),
            "does not read token ids",
        ),
        (lambda model: ablate(model, ROLES, (), [SENTENCE]), LOSSES),
        (require_predictions, PREDICTIONS),
        (require_operands, "does not give the queries, keys and values"),
        (require_token_sequences, "does not read token ids"),
        (require_losses, LOSSES),
    ],
)
def test_experiments_ask_for_what_they_need(run: Callable[[Model], object], lack: str) -> None:
    """In Python, too, an experiment on a model that cannot do it ends in an error that says so."""
    with pytest.raises(AttnvizError, match=f"toy {lack}"):
        run(Toy("toy"))
