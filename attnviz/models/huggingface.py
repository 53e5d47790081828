"""Any transformers model: one from a folder, or one that is loaded already."""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from attnviz.analysis.explain import Operands
from attnviz.engine.change import Changed
from attnviz.engine.edits import Edits
from attnviz.engine.gradients import UNREACHED, Graded
from attnviz.engine.probe import Found
from attnviz.engine.steps import HIDDEN_STEPS, Followed, inputs_of_running
from attnviz.errors import InputError, ModelError, UsageError
from attnviz.lm.corpus import Ids
from attnviz.models.checks import require_memory, require_none
from attnviz.models.folders import Folders
from attnviz.models.generation import Steps
from attnviz.models.huggingface_loading import load_parts, position_limit, reads_target
from attnviz.models.huggingface_prediction import ask, require_gradient
from attnviz.models.huggingface_reading import Reading, sizes_of, undisturbed
from attnviz.models.huggingface_text import (
    Encoded,
    continuation,
    encode,
    encode_ids,
    require_embeddings,
    spell,
    unended,
    vocabulary,
    with_target,
    write,
)
from attnviz.models.interventions import ABREAST, batches, changed_ids
from attnviz.models.maps import (
    Choice,
    assemble,
    choose,
    edits,
    fidelity,
    places,
    require_room,
    wanted_heads,
    window_places,
)
from attnviz.models.restore import in_turn
from attnviz.record import GRADIENT, Capture, Floats, Token
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Change,
    Intervention,
    Placement,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
)
from attnviz.selection import Sides

SPELT = "input_ids", "decoder_input_ids"
BATCH = 8  # sequences whose next tokens are predicted at once: a wide vocabulary takes memory


class HuggingFace:
    """A transformers model with its tokenizer."""

    def __init__(self, name: str, model: Any, tokenizer: Any = None, notes: tuple[str, ...] = ()) -> None:
        self.name, self.model, self.tokenizer, self.notes = name, model, tokenizer, notes
        self.reading = Reading(model)

    @classmethod
    @in_turn
    def load(
        cls, name: str, folders: Folders | Path, placement: Placement, *, writes: bool = False, predicts: bool = False
    ) -> "HuggingFace":
        """From local folders, or one: safetensors only, no code from it.

        writes: with the head that continues a text; predicts: with the one that the folder was saved with.
        """
        folders = Folders(folders) if isinstance(folders, Path) else folders
        return cls(name, *load_parts(folders, placement, writes=writes, predicts=predicts))

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads at most."""
        limits = position_limit(self.model), self.tokenizer.model_max_length
        return min((limit for limit in limits if limit and 0 < limit < 1 << 31), default=None)

    @in_turn
    def capture(self, prompt: Prompt, request: Request, intervention: Intervention = NOTHING) -> Capture:
        """See ``Model.capture``."""
        encoded = self.encoded(prompt, request.truncate, intervention)
        sites = self.reading.survey(self.placed(encoded.inputs))
        chosen = choose(sites, request)
        note = None
        if prompt.generate:
            encoded, found = self.continued(encoded, prompt.generate, chosen, request)
            request = request.placed(encoded.sides_of(chosen[0]))
        else:
            request = request.placed(encoded.sides_of(chosen[0]))
            require_room(chosen, encoded.sides_of, request)
            found, note = self.found(encoded, wanted_heads(chosen, sites), request, intervention)
        measured, warning = fidelity(found, self.model.dtype)
        where = window_places(chosen, encoded.sides_of, request)
        maps = assemble(chosen, sites, found, encoded.sides_of, request)
        notes = tuple(line for line in (*self.notes, *encoded.notes, *where, note, warning) if line)
        return Capture(self.name, encoded.text, maps, notes, prompt.pair, encoded.target, measured, encoded.segments)

    @in_turn
    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """See ``Model.operands``."""
        encoded = self.encoded(prompt, request.truncate)
        inputs = self.placed(encoded.inputs)
        sites = self.reading.survey(inputs)
        choice = choose(sites, request)[0]
        number, heads = next(iter(wanted_heads((choice,), sites).items()))
        query = request.placed(encoded.sides_of(choice)).rows.start
        with inputs_of_running(self.model) as running:
            followed = Followed(number, heads[0], query, running)
            self.reading.run(inputs, followed)
        if followed.found is None:
            raise ModelError(HIDDEN_STEPS)
        return followed.found

    def found(
        self, encoded: Encoded, heads: Mapping[int, tuple[int, ...]], request: Request, intervention: Intervention
    ) -> tuple[dict[int, Found], str | None]:
        """What is found at the calls of a run, and a note of what is to be said of it."""
        inputs, edits = self.inputs(encoded, [intervention]), self.edits(encoded, [intervention])
        if request.method != GRADIENT:
            return self.reading.read(inputs, heads, request, edits)
        asked = ask(self.model, self.tokenizer, encoded, request.target)
        require_gradient(self.model, self.tokenizer, asked)
        graded = Graded(edits)
        slopes, _ = self.reading.run(inputs, graded, lambda model, inputs: graded.slopes(asked.logit(model, inputs)))
        if len(graded.calls) != len(self.reading.sites):
            raise ModelError(UNREACHED)
        return {at: graded.found(at, slopes, heads[at], request) for at in heads}, asked.told

    @in_turn
    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """See ``Model.respond``."""
        encoded = self.encoded(prompt, truncate, *interventions)
        self.reading.survey(self.placed(encoded.inputs))
        asked = ask(self.model, self.tokenizer, encoded, target)
        endless = getattr(self.model.config, "pad_token_id", None) is None
        alone = self.reading.tapped or (endless and asked.kind == "class")  # told at the last token before padding
        outputs = [
            asked.read(self.reading.run(self.inputs(encoded, batch), Changed(self.edits(encoded, batch)), asked.run)[0])
            for batch in batches(interventions, 1 if alone else ABREAST)
        ]
        return asked.response(torch.cat(outputs).float().cpu().numpy())

    def inputs(self, encoded: Encoded, batch: Sequence[Intervention]) -> dict[str, Tensor]:
        """What is read under each intervention of a batch, on the model's device."""
        changed = torch.from_numpy(changed_ids(encoded.inputs["input_ids"][0].tolist(), batch))
        others = {name: part.expand(len(batch), *part.shape[1:]) for name, part in encoded.inputs.items()}
        return self.placed({**others, "input_ids": changed})

    def edits(self, encoded: Encoded, batch: Sequence[Intervention]) -> Edits:
        """What a batch changes in the calls of a run; the model has been surveyed. Raises UsageError."""
        return edits(batch, self.reading.sites, encoded.sides)

    def encoded(self, prompt: Prompt, truncate: bool, *interventions: Intervention) -> Encoded:
        """A prompt as the model reads it. Raises UsageError for what it cannot do, InputError if it does not fit."""
        changed = any(one != NOTHING for one in interventions)
        both_sides = reads_target(self.model)
        require_none({"--target": prompt.target and not both_sides}, f"{self.name} has no decoder that would read it")
        require_none({"--generate": prompt.generate and both_sides}, f"{self.name} writes its target by itself")
        require_none({"--generate": prompt.generate and changed}, "what is changed is a text that is there")
        self.require_one_text(prompt.ids is not None)
        if prompt.ids is not None:
            return encode_ids(self.tokenizer, prompt.ids, self.positions, self.name)
        encoded = encode(self.tokenizer, prompt, self.positions, truncate, self.name)
        require_embeddings(encoded, self.model, self.tokenizer, self.name)
        if both_sides:
            encoded = with_target(encoded, self.model, self.tokenizer, prompt, self.positions)
            require_embeddings(encoded, self.model, self.tokenizer, self.name)
        return encoded

    @property
    def vocabulary(self) -> Vocabulary:
        """See ``Model.vocabulary``. Raises UsageError of an encoder-decoder."""
        self.require_one_text(True)
        return vocabulary(self.tokenizer, self.model.get_input_embeddings().num_embeddings, self.positions)

    def require_one_text(self, ids: bool) -> None:
        """Raise UsageError if a sequence of ids is to be read by a model that reads two texts."""
        if ids and reads_target(self.model):
            raise UsageError(f"{self.name} reads a text and a target: random tokens are for models that read one text")

    @in_turn
    def losses(self, ids: Ids, change: Change | None = None) -> Floats:
        """See ``Model.losses``."""
        if reads_target(self.model) or not self.model.can_generate():
            raise UsageError(f"{self.name} predicts no next tokens, of which a loss could be measured")
        parts = np.array_split(ids, -(-len(ids) // BATCH))
        return np.concatenate([self.next_losses(torch.from_numpy(part), change) for part in parts])

    def next_losses(self, ids: Tensor, change: Change | None) -> Floats:
        """The same of a few sequences at once."""
        inputs = self.placed({"input_ids": ids})
        layers = [site.layer for site in self.reading.survey(inputs)]
        outputs, _ = self.reading.run(inputs, Changed(Edits(layers, change=change)))
        predicted, expected = outputs.logits[:, :-1].float(), inputs["input_ids"][:, 1:]
        found: Floats = cross_entropy(predicted.mT, expected, reduction="none").cpu().numpy()
        return found

    def continued(
        self, encoded: Encoded, count: int, chosen: Sequence[Choice], request: Request
    ) -> tuple[Encoded, dict[int, Found]]:
        """A text continued by so many tokens, and what was found meanwhile."""
        if not self.model.can_generate():
            raise UsageError(f"{self.name} was loaded without the part that writes")
        heads = wanted_heads(chosen, self.reading.sites)
        inputs, size = self.placed(encoded.inputs), len(encoded.tokens) + count
        require_memory({(size, size): sum(map(len, heads.values()))})
        if self.reading.tapped:  # these are read by the lengths of their calls, which grow as they write
            with undisturbed(self.model):
                ids = unended(self.model, write(self.model, inputs, count))
            encoded = continuation(encoded, self.tokenizer, ids)
            request = request.placed(encoded.sides_of(chosen[0]))
            return encoded, self.reading.read(self.placed(encoded.inputs), heads, request)[0]
        steps = Steps(len(self.reading.sites), heads)
        # One more than asked for: what was written last is never read, and has no row. Nor has what ends a text.
        ids = self.reading.run(inputs, steps, lambda model, inputs: write(model, inputs, count + 1))[0]
        encoded = continuation(encoded, self.tokenizer, ids[:-1])
        return encoded, steps.found(request.placed(encoded.sides_of(chosen[0])))

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device."""
        device = self.model.device
        return {name: part.to(device) if isinstance(part, Tensor) else part for name, part in inputs.items()}

    @in_turn
    def capture_inputs(self, inputs: Any, request: Request) -> Capture:
        """The same for inputs that are encoded already; tokens are named by the tokenizer, if there is one."""
        inputs = self.placed(named_inputs(self.model, inputs))
        sites = self.reading.survey(inputs)
        chosen = choose(sites, request)
        (text, tokens), (target, target_tokens) = (self.spelt(inputs, name) for name in SPELT)
        sides = self.sides(inputs, tokens, target_tokens)
        require_room(chosen, sides, request)
        found, note = self.reading.read(inputs, wanted_heads(chosen, sites), request)
        measured, warning = fidelity(found, self.model.dtype)
        maps = assemble(chosen, sites, found, sides, request)
        notes = tuple(line for line in (note, warning) if line)
        return Capture(self.name, text, maps, notes, target=target or None, fidelity=measured)

    def spelt(self, inputs: Mapping[str, Any], name: str) -> tuple[str, tuple[Token, ...]]:
        """The text and the tokens of the input of that name, as far as there is one and a tokenizer for it."""
        if self.tokenizer is None or name not in inputs:
            return "", ()
        return spell(self.tokenizer, inputs[name][0].tolist(), 0, "")

    def sides(
        self, inputs: Mapping[str, Tensor], text: tuple[Token, ...], target: tuple[Token, ...]
    ) -> Callable[[Choice], Sides]:
        """The tokens of each map of such inputs: by name where they are tokens, else by place."""
        sites = {(site.kind, site.layer): site for site in self.reading.sites}

        def of(choice: Choice) -> Sides:
            n, m = sizes_of(sites[choice.kind, choice.layers[0]], inputs)
            queries = target if choice.kind in ("decoder", "cross") else text
            keys = target if choice.kind == "decoder" else text
            return queries if len(queries) == n else places(n), keys if len(keys) == m else places(m)

        return of


def named_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """What a model is called with, by name: lists of numbers as tensors, a text alone as a batch of one.

    Raises InputError if there are no tensors, or lists that make none.
    """
    if isinstance(inputs, Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        inputs = dict(zip(signature(model.forward).parameters, inputs, strict=False))
    try:
        made = {name: torch.tensor(part) if isinstance(part, list) else part for name, part in inputs.items()}
    except ValueError as error:
        raise InputError(f"inputs= holds lists that make no tensor: {error}") from error
    if not any(isinstance(part, Tensor) for part in made.values()):
        raise InputError("inputs= holds no tensor: give input_ids, a mapping of names, or a sequence of arguments")
    return {name: part[None] if isinstance(part, Tensor) and part.ndim == 1 else part for name, part in made.items()}
