"""Any transformers model: one from a folder, or one that is loaded already."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.utils.generic import TransformersKwargs

from attnviz.analysis.explain import Operands
from attnviz.engine.edits import Edits
from attnviz.engine.observers.base import Found, Site
from attnviz.engine.observers.change import Changed
from attnviz.engine.observers.generation import Steps
from attnviz.engine.observers.gradient import UNREACHED, Graded
from attnviz.engine.observers.trace import HIDDEN_STEPS, Followed, inputs_of_running
from attnviz.errors import InputError, ModelError, UsageError
from attnviz.lm.corpus import Ids
from attnviz.models.base import SupportsLosses, SupportsOperands, SupportsPredictions
from attnviz.models.checks import require_memory, require_none
from attnviz.models.folders import Folders
from attnviz.models.huggingface.attention import Reading, Surveyed, sizes_of, undisturbed
from attnviz.models.huggingface.encoding import (
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
from attnviz.models.huggingface.key_value_cache import copying_caches, read_past
from attnviz.models.huggingface.loading import load_parts, position_limit, reads_target
from attnviz.models.huggingface.prediction import Asked, ask, require_gradient
from attnviz.models.inputs import (
    AMBIGUOUS,
    Arguments,
    is_array,
    is_list_of_numbers,
    make_tensor,
    require_names,
)
from attnviz.models.interventions import ABREAST, batches, changed_ids
from attnviz.models.maps import (
    Choice,
    assemble,
    choose,
    describe_parts,
    describe_sizes,
    edits,
    fidelity,
    places,
    require_room,
    wanted_heads,
    window_places,
)
from attnviz.models.restore import in_turn, translate_failures
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
REPEATED = (
    "attention of this model cannot be followed: its weights are used twice, with different values"
)
AXES = {
    "input_ids": 2,
    "inputs_embeds": 3,
    "decoder_input_ids": 2,
    "decoder_inputs_embeds": 3,
}  # of a batch of texts
RETURNED = (
    "labels",
    "return_dict",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
)  # no attention is of these
EXTRAS = frozenset({*TransformersKwargs.__annotations__, *RETURNED, "token_type_ids"})
"""Names that models may be given though their forward does not name them: those of the library, and of tokenizers."""
BATCH = 8  # sequences whose next tokens are predicted at once: a wide vocabulary takes memory


class HuggingFace(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A transformers model with its tokenizer."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any = None, notes: tuple[str, ...] = ()
    ) -> None:
        self.name, self.model, self.tokenizer, self.notes = name, model, tokenizer, notes
        self.reading = Reading(model)

    @classmethod
    @in_turn
    @torch.inference_mode(
        False
    )  # parameters that were made in inference mode would have no gradients
    def load(
        cls,
        name: str,
        folders: Folders | Path,
        placement: Placement,
        *,
        writes: bool = False,
        predicts: bool = False,
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
    def capture(
        self, prompt: Prompt, request: Request, intervention: Intervention = NOTHING
    ) -> Capture:
        """See ``SupportsPredictions.capture``."""
        encoded = self.encoded(prompt, request.truncate, intervention)
        surveyed = self.reading.survey(self.placed(encoded.inputs))
        sites = surveyed.sites
        chosen = choose(sites, request)
        note = None
        if prompt.generate:
            encoded, found = self.continued(encoded, surveyed, prompt.generate, chosen, request)
            request = request.placed(encoded.sides_of(chosen[0]))
        else:
            if surveyed.pooled and request.windowed:
                require_whole(sites, chosen, len(encoded.tokens))
            sides = self.sides_of(encoded, surveyed)
            request = request.placed(sides(chosen[0]))
            require_room(chosen, sides, request)
            heads = wanted_heads(chosen, sites)
            found, note = self.found(encoded, surveyed, heads, request, intervention)
        sides = self.sides_of(encoded, surveyed)
        measured, warning = fidelity(found)
        where = window_places(chosen, sides, request)
        maps = assemble(chosen, sites, found, sides, request)
        structure = describe_parts(sites)
        if surveyed.pooled:
            structure = describe_sizes(sites, len(encoded.tokens))
        lines = (*self.notes, *encoded.notes, *where, structure, note, warning)
        return Capture(
            self.name,
            encoded.text,
            maps,
            tuple(line for line in lines if line),
            prompt.pair,
            encoded.target,
            measured,
            encoded.segments,
            self.reading.describe_reference(measured),
            self.reading.change,
        )

    @in_turn
    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """See ``SupportsOperands.operands``."""
        encoded = self.encoded(prompt, request.truncate)
        inputs = self.placed(encoded.inputs)
        surveyed = self.reading.survey(inputs)
        sites = surveyed.sites
        choice = choose(sites, request)[0]
        number, heads = next(iter(wanted_heads((choice,), sites).items()))
        if number + 1 < len(sites) and sites[number + 1].repeated:
            raise ModelError(REPEATED)
        query = request.placed(self.sides_of(encoded, surveyed)(choice)).rows.start
        with inputs_of_running(self.model) as running:
            followed = Followed(number, heads[0], query, running)
            self.reading.run(inputs, followed)
        if followed.found is None:
            raise ModelError(HIDDEN_STEPS)
        return followed.found

    def found(
        self,
        encoded: Encoded,
        surveyed: Surveyed,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        intervention: Intervention,
    ) -> tuple[dict[int, Found], str | None]:
        """What is found at the calls of a run, and a note of what is to be said of it."""
        inputs = self.inputs(encoded, [intervention])
        edits = self.edits(encoded, surveyed, [intervention])
        if request.method != GRADIENT:
            return self.reading.read(surveyed, inputs, heads, request, edits)
        asked = ask(self.model, self.tokenizer, encoded, request.target)
        require_gradient(self.model, self.tokenizer, asked)
        require_no_inference(self.model)
        with torch.inference_mode(False):
            found = self.weigh_gradients(inputs, surveyed, heads, request, edits, asked)
        return found, asked.told

    def weigh_gradients(
        self,
        inputs: Mapping[str, Tensor],
        surveyed: Surveyed,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: Edits,
        asked: Asked,
    ) -> dict[int, Found]:
        """Weigh gradients of what is asked by the weights of some heads of the calls."""
        graded = Graded(edits)
        copies = {
            name: part.clone() for name, part in inputs.items()
        }  # a graph keeps no tensor of inference mode
        slopes, _ = self.reading.run(
            copies, graded, lambda model, inputs: graded.slopes(asked.logit(model, inputs))
        )
        is_repeated = any(site.repeated for site in surveyed.sites)
        if len(graded.calls) != len(surveyed.sites) or is_repeated:
            raise ModelError(UNREACHED)
        return {at: graded.found(at, slopes, heads[at], request) for at in heads}

    @in_turn
    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """See ``SupportsPredictions.respond``."""
        encoded = self.encoded(prompt, truncate, *interventions)
        surveyed = self.reading.survey(self.placed(encoded.inputs))
        asked = ask(self.model, self.tokenizer, encoded, target)
        endless = getattr(self.model.config, "pad_token_id", None) is None
        alone = self.reading.tapped or (
            endless and asked.kind == "class"
        )  # told at the last token before padding
        outputs = []
        for batch in batches(interventions, 1 if alone else ABREAST):
            inputs = self.inputs(encoded, batch)
            changed = Changed(self.edits(encoded, surveyed, batch))
            said, _ = self.reading.run(inputs, changed, asked.run)
            outputs.append(asked.read(said))
        return asked.response(torch.cat(outputs).float().cpu().numpy())

    def inputs(self, encoded: Encoded, batch: Sequence[Intervention]) -> dict[str, Tensor]:
        """What is read under each intervention of a batch, on the model's device."""
        changed = torch.from_numpy(changed_ids(encoded.inputs["input_ids"][0].tolist(), batch))
        others = {
            name: part.expand(len(batch), *part.shape[1:]) for name, part in encoded.inputs.items()
        }
        return self.placed({**others, "input_ids": changed})

    def edits(self, encoded: Encoded, surveyed: Surveyed, batch: Sequence[Intervention]) -> Edits:
        """Return what a batch changes in the calls of a run. Raises UsageError."""
        return edits(batch, surveyed.sites, encoded.sides, pooled=surveyed.pooled)

    def sides_of(self, encoded: Encoded, surveyed: Surveyed) -> Callable[[Choice], Sides]:
        """Return what gives the queries and keys of each map: tokens, or places where layers shorten the text."""
        if not surveyed.pooled:
            return encoded.sides_of
        sizes = {(site.kind, site.layer): site.size for site in surveyed.sites}

        def pick_sides(choice: Choice) -> Sides:
            counts, sides = sizes[choice.kind, choice.layers[0]], encoded.sides_of(choice)
            queries, keys = (
                tokens if len(tokens) == count else places(count)
                for tokens, count in zip(sides, counts, strict=True)
            )
            return queries, keys

        return pick_sides

    def encoded(self, prompt: Prompt, truncate: bool, *interventions: Intervention) -> Encoded:
        """A prompt as the model reads it. Raises UsageError for what it cannot do, InputError if it does not fit."""
        changed = any(one != NOTHING for one in interventions)
        both_sides = reads_target(self.model)
        require_none(
            {"--target": prompt.target and not both_sides},
            f"{self.name} has no decoder that would read it",
        )
        require_none(
            {"--generate": prompt.generate and both_sides},
            f"{self.name} writes its target by itself",
        )
        require_none(
            {"--generate": prompt.generate and changed}, "what is changed is a text that is there"
        )
        self.require_one_text(prompt.ids is not None)
        if prompt.ids is not None:
            return encode_ids(self.tokenizer, prompt.ids, self.positions, self.name)
        encoded = encode(self.tokenizer, prompt, self.positions, truncate, self.name)
        require_embeddings(encoded, self.model, self.tokenizer, self.name)
        if both_sides:
            encoded = with_target(encoded, self.model, self.tokenizer, prompt, self.positions)
            require_embeddings(encoded, self.model, self.tokenizer, self.name)
        return encoded

    def read_vocabulary(self) -> Vocabulary:
        """See ``SupportsSequences.read_vocabulary``.

        Raises UsageError for an encoder-decoder, ModelError for a model without a table of tokens.
        """
        self.require_one_text(True)
        try:
            known = self.model.get_input_embeddings().num_embeddings
        except (NotImplementedError, AttributeError):
            raise ModelError(
                f"{self.name} has no table of tokens, of which a text could be made up"
            ) from None
        return vocabulary(self.tokenizer, known, self.positions)

    def require_one_text(self, ids: bool) -> None:
        """Raise UsageError if a sequence of ids is to be read by a model that reads two texts."""
        if ids and reads_target(self.model):
            raise UsageError(
                f"{self.name} reads a text and a target: random tokens are for models that read one text"
            )

    @in_turn
    def losses(self, ids: Ids, change: Change | None = None) -> Floats:
        """See ``SupportsLosses.losses``."""
        if reads_target(self.model) or not self.model.can_generate():
            raise UsageError(
                f"{self.name} predicts no next tokens, of which a loss could be measured"
            )
        parts = np.array_split(ids, -(-len(ids) // BATCH))
        return np.concatenate([self.next_losses(torch.from_numpy(part), change) for part in parts])

    def next_losses(self, ids: Tensor, change: Change | None) -> Floats:
        """The same of a few sequences at once."""
        inputs = self.placed({"input_ids": ids})
        layers = [site.layer for site in self.reading.survey(inputs).sites]
        outputs, _ = self.reading.run(inputs, Changed(Edits(layers, change=change)))
        predicted, expected = outputs.logits[:, :-1].float(), inputs["input_ids"][:, 1:]
        found: Floats = cross_entropy(predicted.mT, expected, reduction="none").cpu().numpy()
        return found

    def continued(
        self,
        encoded: Encoded,
        surveyed: Surveyed,
        count: int,
        chosen: Sequence[Choice],
        request: Request,
    ) -> tuple[Encoded, dict[int, Found]]:
        """A text continued by so many tokens, and what was found meanwhile."""
        if not self.model.can_generate():
            raise UsageError(f"{self.name} was loaded without the part that writes")
        heads = wanted_heads(chosen, surveyed.sites)
        inputs, size = self.placed(encoded.inputs), len(encoded.tokens) + count
        require_memory({(size, size): sum(map(len, heads.values()))})
        if (
            self.reading.tapped
        ):  # these are read by the lengths of their calls, which grow as they write
            with undisturbed(self.model):
                ids = unended(self.model, write(self.model, inputs, count))
            encoded = continuation(encoded, self.tokenizer, ids)
            request = request.placed(encoded.sides_of(chosen[0]))
            inputs = self.placed(encoded.inputs)
            return encoded, self.reading.read(surveyed, inputs, heads, request)[0]
        steps = Steps(len(surveyed.sites), heads)
        # One more than asked for: what was written last is never read, and has no row. Nor has what ends a text.
        ids = self.reading.run(
            inputs, steps, lambda model, inputs: write(model, inputs, count + 1)
        )[0]
        encoded = continuation(encoded, self.tokenizer, ids[:-1])
        return encoded, steps.found(request.placed(encoded.sides_of(chosen[0])))

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device."""
        device = self.model.device
        with translate_failures(self.model):
            return {
                name: part.to(device) if isinstance(part, Tensor) else part
                for name, part in inputs.items()
            }

    @in_turn
    def capture_inputs(self, inputs: Any, request: Request) -> Capture:
        """The same for inputs that are encoded already; tokens are named by the tokenizer, if there is one.

        Of a text that continues what a cache of keys and values holds, queries are the tokens of the text alone.
        """
        inputs = self.placed(named_inputs(self.model, inputs))
        past = read_past(self.model, inputs, request)
        with copying_caches(self.model):
            surveyed = self.reading.survey(inputs)
            sites = surveyed.sites
            chosen = choose(sites, request)
            (text, tokens), (target, target_tokens) = (self.spelt(inputs, name) for name in SPELT)
            sides = self.sides(inputs, surveyed, tokens, target_tokens)
            require_room(chosen, sides, request)
            found, note = self.reading.read(surveyed, inputs, wanted_heads(chosen, sites), request)
        measured, warning = fidelity(found)
        maps = assemble(chosen, sites, found, sides, request)
        if past is not None:
            maps = tuple(past.place_map(part, tokens) for part in maps)
            note = past.note if note is None else f"{note}; {past.note}"
        structure = describe_parts(sites)
        if surveyed.pooled:
            structure = describe_sizes(sites, sizes_of(sites[0], inputs)[0])
        notes = tuple(line for line in (structure, note, warning) if line)
        return Capture(
            self.name,
            text,
            maps,
            notes,
            target=target or None,
            fidelity=measured,
            fidelity_reference=self.reading.describe_reference(measured),
            output_change=self.reading.change,
        )

    def spelt(self, inputs: Mapping[str, Any], name: str) -> tuple[str, tuple[Token, ...]]:
        """The text and the tokens of the input of that name, as far as there is one and a tokenizer for it."""
        if self.tokenizer is None or name not in inputs:
            return "", ()
        return spell(self.tokenizer, inputs[name][0].tolist(), 0, "")

    def sides(
        self,
        inputs: Mapping[str, Tensor],
        surveyed: Surveyed,
        text: tuple[Token, ...],
        target: tuple[Token, ...],
    ) -> Callable[[Choice], Sides]:
        """The tokens of each map of such inputs: by name where they are tokens, else by place."""
        sites = {(site.kind, site.layer): site for site in surveyed.sites}

        def of(choice: Choice) -> Sides:
            site = sites[choice.kind, choice.layers[0]]
            n, m = site.size if surveyed.pooled else sizes_of(site, inputs)
            queries = target if choice.kind in ("decoder", "cross") else text
            keys = target if choice.kind == "decoder" else text
            return queries if len(queries) == n else places(n), keys if len(keys) == m else places(
                m
            )

        return of


def require_whole(sites: Sequence[Site], chosen: Sequence[Choice], tokens: int) -> None:
    """Raise InputError if a window of a text is asked of layers that do not read all of its tokens."""
    sizes = {(site.kind, site.layer): site.size for site in sites}
    if any(
        {*sizes[choice.kind, layer]} != {tokens} for choice in chosen for layer in choice.layers
    ):
        raise InputError(
            "a part of a text is shown, and edges are cut, only where all layers read its tokens: "
            "some of these layers have other lengths"
        )


def require_no_inference(model: Any) -> None:
    """Raise UsageError of a model that was made in inference mode, which has no gradients."""
    names = [
        name
        for name, part in (*model.named_parameters(), *model.named_buffers())
        if part.is_inference()
    ]
    if names:
        raise UsageError(
            f"this model was made under torch.inference_mode ({names[0]}), so that it has no gradients: make it "
            "outside of inference mode, or use method='attention'"
        )


def named_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """What a model is called with, by name: arrays and lists of numbers as tensors, a text alone as a batch of one.

    What changes only what a model returns is left out. Raises InputError if there are no tensors, lists that make
    none, or names that the model does not know.
    """
    by_name = name_inputs(model, inputs)
    require_names(model, tuple(by_name), EXTRAS | list_passing_names(model, by_name))
    values = {
        name: value for name, value in by_name.items() if name not in RETURNED and value is not None
    }
    tensors = {name: read_input(name, value, model.dtype) for name, value in values.items()}
    if not any(isinstance(value, Tensor) for value in tensors.values()):
        raise InputError(
            "inputs= holds no tensor: give input_ids, a mapping of names, or a sequence of arguments"
        )
    for name in tensors.keys() & AXES.keys():
        require_tokens(name, tensors[name])
    return add_decoder_inputs(model, tensors, by_name.get("labels"))


def require_tokens(name: str, value: Any) -> None:
    """Raise InputError unless an input holds tokens, with as many axes as it has of a batch of texts."""
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} is of type {type(value).__name__}: give a tensor, an array or a list"
        )
    if value.ndim != AXES[name]:
        raise InputError(
            f"{name} has {value.ndim} axes, not {AXES[name]}: its shape is {tuple(value.shape)}"
        )
    if not value.numel():
        raise InputError(f"inputs= holds no tokens: {name} has the shape {tuple(value.shape)}")


def name_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """Name inputs, those by place under the names of the model. Raises InputError."""
    if (
        isinstance(inputs, list)
        and len(inputs) > 1
        and all(is_list_of_numbers(part) for part in inputs)
    ):
        raise InputError(AMBIGUOUS)
    if not (isinstance(inputs, (Mapping, tuple, list, Tensor)) or is_array(inputs)):
        raise InputError(
            f"inputs= is of type {type(inputs).__name__}: give a tensor, an array, a mapping or a sequence"
        )
    arguments = Arguments.of(inputs)
    names = list(signature(model.forward).parameters)
    if len(arguments.places) > len(names):
        raise InputError(
            f"inputs= holds {len(arguments.places)} arguments, more than {type(model).__name__} takes"
        )
    return {**dict(zip(names, arguments.places, strict=False)), **arguments.names}


def list_passing_names(model: Any, names: Iterable[str]) -> frozenset[str]:
    """List the names that an encoder-decoder made of two models hands to one of these, which it does not list."""
    if not model.config.is_encoder_decoder:
        return frozenset()
    return frozenset(name for name in names if name.startswith(("encoder_", "decoder_")))


def read_input(name: str, value: Any, dtype: torch.dtype) -> Any:
    """Make a tensor of an array or a list of numbers, with the axis of the batch; leave other values as they are."""
    if is_array(value) or isinstance(value, list):
        value = make_tensor(value, dtype)
    if not isinstance(value, Tensor):
        return value
    alone = 2 if name.endswith("inputs_embeds") else 1  # axes of a text without a batch
    return value[None] if value.ndim == alone else value


def add_decoder_inputs(model: Any, inputs: dict[str, Any], labels: Any) -> dict[str, Any]:
    """Add what the decoder of an encoder-decoder reads, which labels tell too.

    Raises InputError if there is neither: most models would read anything, and the maps could not be told apart.
    """
    takes = "decoder_input_ids" in signature(model.forward).parameters
    there = inputs.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    if not (model.config.is_encoder_decoder and takes) or there:
        return inputs
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if labels is None or shift is None:
        raise InputError(
            f"{type(model).__name__} reads a text and a target: inputs= holds no decoder_input_ids"
        )
    target = read_input("labels", labels, model.dtype)
    return {**inputs, "decoder_input_ids": shift(labels=target)}
