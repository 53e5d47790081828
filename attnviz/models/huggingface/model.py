"""Any transformers model: one from a folder, or one that is loaded already."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.utils.generic import TransformersKwargs

from attnviz.analysis.explain import Operands
from attnviz.engine.edits import RunEdits
from attnviz.engine.observers.base import AttentionSite, CallResult
from attnviz.engine.observers.change import ChangeObserver
from attnviz.engine.observers.generation import GenerationObserver
from attnviz.engine.observers.gradient import UNREACHED, GradientObserver
from attnviz.engine.observers.trace import (
    HIDDEN_STEPS,
    TraceObserver,
    watch_running_inputs,
)
from attnviz.errors import InputError, ModelError, UsageError
from attnviz.lm.corpus import Ids
from attnviz.models.base import (
    SupportsLosses,
    SupportsOperands,
    SupportsPredictions,
)
from attnviz.models.checks import require_none
from attnviz.models.folders import Folders
from attnviz.models.huggingface.attention import (
    AttentionReader,
    ModelSurvey,
    find_call_size,
    run_undisturbed,
    silence_library,
)
from attnviz.models.huggingface.encoding import (
    EncodedText,
    add_target,
    append_continuation,
    drop_end_token,
    encode_ids,
    encode_prompt,
    generate_ids,
    require_embeddings,
)
from attnviz.models.huggingface.key_value_cache import (
    protect_caches,
    read_cached_text,
)
from attnviz.models.huggingface.loading import (
    find_position_limit,
    load_parts,
    reads_target,
)
from attnviz.models.huggingface.prediction import (
    ResolvedTarget,
    require_gradient,
    resolve_target,
)
from attnviz.models.inputs import (
    AMBIGUOUS,
    Arguments,
    is_array,
    is_list_of_numbers,
    make_tensor,
    require_names,
)
from attnviz.models.interventions import (
    ABREAST,
    change_ids,
    count_batches,
)
from attnviz.models.kept_segments import note_kept_segments, resolve_segments
from attnviz.models.maps import (
    MapChoice,
    assemble_maps,
    choose_maps,
    describe_parts,
    describe_sizes,
    describe_windows,
    group_heads_by_call,
    group_keys_by_call,
    make_edits,
    make_position_tokens,
    measure_fidelity,
    require_capture_memory,
)
from attnviz.models.prompts import make_vocabulary, spell_ids
from attnviz.models.restore import translate_failures, wait_for_turn
from attnviz.progress import begin_step
from attnviz.record import GRADIENT, Capture, Floats, Token
from attnviz.request import (
    LIKELIEST,
    NOTHING,
    Intervention,
    OutputChange,
    Placement,
    Prompt,
    Request,
    Response,
    Target,
    Vocabulary,
)
from attnviz.selection import MapTokens

REPEATED = (
    "attention of this model cannot be followed: its weights are used twice, with different values"
)
AXES = {
    "input_ids": 2,
    "inputs_embeds": 3,
    "decoder_input_ids": 2,
    "decoder_inputs_embeds": 3,
}
"""The number of axes of each input that holds tokens, in a batch of texts."""
RETURNED = (
    "labels",
    "return_dict",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
)
"""Inputs that change what a model returns, and not what it attends to."""
EXTRAS = frozenset({*TransformersKwargs.__annotations__, *RETURNED, "token_type_ids"})
"""Names of inputs that a model may be given though its forward does not name them.

They are the names that the library knows, and that tokenizers give.
"""
# tokens: tokenizers without a limit name a number of this size or larger
UNLIMITED = 1 << 31
WRITING = "writing a continuation"
# sequences whose next tokens are predicted at once: a wide vocabulary takes memory
BATCH = 8

FindSides = Callable[[MapChoice], MapTokens]
"""Return the queries and the keys of a map that is to be made."""


class HuggingFace(SupportsPredictions, SupportsOperands, SupportsLosses):
    """A transformers model with its tokenizer."""

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Take a transformers model that is loaded already.

        name: the name of the model in pictures and messages. tokenizer: None if the model gets
        encoded inputs only. notes: lines for the user that each capture of the model has.
        """
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.notes = notes
        self.reader = AttentionReader(model)

    @classmethod
    @wait_for_turn
    # parameters that were made in inference mode would have no gradients
    @torch.inference_mode(False)
    def load(
        cls,
        name: str,
        folders: Folders | Path,
        placement: Placement,
        *,
        writes: bool = False,
        predicts: bool = False,
    ) -> "HuggingFace":
        """Load a transformers model and its tokenizer from local folders.

        Only safetensors are read, and no code from the folders is run.

        name: the name of the model in pictures and messages. folders: the folder of the model
        alone, or with the folders of another tokenizer and of an adapter. placement: the device and
        the number type. writes: True to load the head that continues a text. predicts: True to load
        the head that the folder was saved with. Raises ModelError for a folder that cannot be used,
        and UsageError for a device that is not there.
        """
        if isinstance(folders, Path):
            folders = Folders(folders)
        parts = load_parts(folders, placement, writes=writes, predicts=predicts)
        return cls(name, parts.model, parts.tokenizer, parts.notes)

    @property
    def positions(self) -> int | None:
        """The largest number of tokens that the model reads; None if nothing limits it."""
        limits = find_position_limit(self.model), self.tokenizer.model_max_length
        numbers = [limit for limit in limits if isinstance(limit, (int, float))]
        real_limits = [number for number in numbers if 0 < number < UNLIMITED]
        return min(map(int, real_limits), default=None)

    @wait_for_turn
    def capture(
        self,
        prompt: Prompt,
        request: Request,
        intervention: Intervention = NOTHING,
    ) -> Capture:
        """Run the model on a prompt and return what a request names of its attention.

        intervention: what is changed in the run; nothing by default. The capture has a map for each
        rectangle of layers and heads. Raises UsageError for a layer, a head or an edge that is not
        there, and for a part of the prompt that the model cannot read; ModelError for numbers that
        it cannot compute; InputError for a text or a result that does not fit.
        """
        encoded = self.encode_prompt(prompt, request.truncate, intervention)
        request = resolve_segments(request, encoded.text, encoded.segments)
        inputs = self.place_inputs(encoded.inputs)
        survey = self.reader.survey(inputs)
        choices = choose_maps(survey.sites, request)
        reading_note = None
        if prompt.generate:
            count = prompt.generate
            encoded, results = self.continue_text(encoded, survey, count, choices, request)
            request = request.resolve_window(encoded.find_map_sides(choices[0]))
        else:
            if survey.pooled and request.windowed:
                require_whole_text(survey.sites, choices, len(encoded.tokens))
            find_sides = self.make_text_sides(encoded, survey)
            # the query or the key that the request names becomes a window
            request = request.resolve_window(find_sides(choices[0]))
            require_capture_memory(choices, find_sides, request, self.model)
            heads = group_heads_by_call(choices, survey.sites)
            results, reading_note = self.read_text(encoded, survey, heads, request, intervention)
        find_sides = self.make_text_sides(encoded, survey)
        fidelity, warning = measure_fidelity(results)
        window_lines = describe_windows(choices, find_sides, request)
        maps = assemble_maps(choices, survey.sites, results, find_sides, request)
        structure = describe_structure(survey, len(encoded.tokens))
        lines = (
            *self.notes,
            *encoded.notes,
            *window_lines,
            *note_kept_segments(request.segments),
            structure,
            reading_note,
            warning,
        )
        return Capture(
            self.name,
            encoded.text,
            maps,
            notes=tuple(line for line in lines if line),
            pair=prompt.pair,
            target=encoded.target,
            fidelity=fidelity,
            segments=request.segments or encoded.segments,
            fidelity_reference=self.reader.describe_reference(fidelity),
            output_change=self.reader.change,
        )

    @wait_for_turn
    def operands(self, prompt: Prompt, request: Request) -> Operands:
        """Return the vectors that one head computes with for one query of a prompt.

        They are the query, and all keys and values. The head and the query are the first that the
        request names. Raises UsageError if they are not there, and ModelError for a model that
        shows its attention weights only.
        """
        encoded = self.encode_prompt(prompt, request.truncate)
        inputs = self.place_inputs(encoded.inputs)
        survey = self.reader.survey(inputs)
        choice = choose_maps(survey.sites, request)[0]
        heads_by_call = group_heads_by_call((choice,), survey.sites)
        number, heads = next(iter(heads_by_call.items()))
        # a repeated call uses the weights of this one again, with other values
        next_sites = survey.sites[number + 1 :]
        if next_sites and next_sites[0].repeated:
            raise ModelError(REPEATED)
        find_sides = self.make_text_sides(encoded, survey)
        request = request.resolve_window(find_sides(choice))
        with watch_running_inputs(self.model) as running:
            trace = TraceObserver(number, heads[0], request.rows.start, running)
            self.reader.run(inputs, trace)
        if trace.found is None:
            raise ModelError(HIDDEN_STEPS)
        return trace.found

    def read_text(
        self,
        encoded: EncodedText,
        survey: ModelSurvey,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        intervention: Intervention,
    ) -> tuple[dict[int, CallResult], str | None]:
        """Run the model on a text, and return what a request keeps of calls of attention.

        survey: all calls of attention that a run makes. heads: the heads to look at, by the index
        of their call in the run. intervention: what is changed in the run. Returns what was kept of
        each of these calls, by its index, and a note for the user or None.

        Raises UsageError for an edge or a target that is not there, or a model without gradients if
        the request is for them; ModelError if the model cannot be read as asked.
        """
        inputs = self.make_batch_inputs(encoded, [intervention])
        edits = self.make_batch_edits(encoded, survey, [intervention])
        if request.method != GRADIENT:
            groups = make_key_groups(encoded, survey, request)
            return self.reader.read_calls(survey, inputs, heads, request, edits, groups=groups)
        target = resolve_target(self.model, self.tokenizer, encoded, request.target)
        require_gradient(self.model, self.tokenizer, target)
        require_no_inference(self.model)
        with torch.inference_mode(False):
            results = self.weigh_gradients(
                inputs,
                survey,
                heads,
                request=request,
                edits=edits,
                target=target,
            )
        return results, target.description

    def weigh_gradients(
        self,
        inputs: Mapping[str, Tensor],
        survey: ModelSurvey,
        heads: Mapping[int, tuple[int, ...]],
        request: Request,
        edits: RunEdits,
        target: ResolvedTarget,
    ) -> dict[int, CallResult]:
        """Multiply each attention weight of some heads with the gradient of a prediction by it.

        inputs: the inputs of the model. survey: all calls of attention that a run makes. heads: the
        heads to look at, by the index of their call in the run. request: what to keep. edits: what
        is changed in the run. target: the prediction. Returns what is kept of each of these calls,
        by its index. Raises ModelError if the calls cannot all be followed by gradients.
        """
        observer = GradientObserver(edits)
        # a graph keeps no tensor of inference mode
        copies = {name: tensor.clone() for name, tensor in inputs.items()}

        def compute_slopes(model: Any, inputs: Mapping[str, Any]) -> Any:
            return observer.compute_output_gradients(target.compute_logit(model, inputs))

        slopes, _ = self.reader.run(copies, observer, compute_slopes)
        saw_all_calls = len(observer.calls) == len(survey.sites)
        is_repeated = any(site.repeated for site in survey.sites)
        if not saw_all_calls or is_repeated:
            raise ModelError(UNREACHED)
        return {
            number: observer.make_result(number, slopes, call_heads, request)
            for number, call_heads in heads.items()
        }

    @wait_for_turn
    def respond(
        self,
        prompt: Prompt,
        interventions: Sequence[Intervention],
        target: Target = LIKELIEST,
        *,
        truncate: bool = False,
    ) -> Response:
        """Run the model under each of several interventions; return its outputs at one position.

        An intervention is a change of one run. target: the position, and the output that is asked
        about, such as a token or a class. If it names no output, this is the likeliest one under
        the first intervention. truncate: True to cut a text that is too long. Raises UsageError for
        a target or an edge that is not there, and for a part of the prompt that the model cannot
        read; InputError for a text that does not fit.
        """
        encoded = self.encode_prompt(prompt, truncate, *interventions)
        survey = self.reader.survey(self.place_inputs(encoded.inputs))
        resolved = resolve_target(self.model, self.tokenizer, encoded, target)
        batch_size = ABREAST
        if self.reader.tapped or self.needs_single_texts(resolved):
            batch_size = 1
        outputs = []
        for batch in count_batches(interventions, batch_size):
            inputs = self.make_batch_inputs(encoded, batch)
            observer = ChangeObserver(self.make_batch_edits(encoded, survey, batch))
            result, _ = self.reader.run(inputs, observer, resolved.run_model)
            outputs.append(resolved.read_outputs(result))
        all_outputs = torch.cat(outputs).float().cpu()
        return resolved.make_response(all_outputs.numpy())

    def needs_single_texts(self, target: ResolvedTarget) -> bool:
        """Return True if the model can predict a target for a single text at a time only.

        This holds for a class that is predicted by a model without a padding token. A class is
        predicted at the last token before the padding, which such a model does not find among
        several texts.
        """
        padding_id = getattr(self.model.config, "pad_token_id", None)
        return padding_id is None and target.kind == "class"

    def make_batch_inputs(
        self,
        encoded: EncodedText,
        batch: Sequence[Intervention],
    ) -> dict[str, Tensor]:
        """Return the inputs of one run of the model on a text under several interventions.

        batch: the interventions, which may replace tokens. The tensors are on the model's device,
        and their first axis is that of the interventions.
        """
        inputs = {
            name: tensor.expand(len(batch), *tensor.shape[1:])
            for name, tensor in encoded.inputs.items()
        }
        ids = encoded.inputs["input_ids"][0].tolist()
        inputs["input_ids"] = torch.from_numpy(change_ids(ids, batch))
        return self.place_inputs(inputs)

    def make_batch_edits(
        self,
        encoded: EncodedText,
        survey: ModelSurvey,
        batch: Sequence[Intervention],
    ) -> RunEdits:
        """Return the changes that interventions make to the calls of attention in one run.

        survey: all calls that a run makes. batch: interventions that are run at once. Raises
        UsageError for an edge that is not there, and ModelError for edges that cannot be cut.
        """
        return make_edits(batch, survey.sites, encoded.find_sides, pooled=survey.pooled)

    def make_text_sides(self, encoded: EncodedText, survey: ModelSurvey) -> FindSides:
        """Return a function that gives the tokens of the queries and of the keys of a map.

        They are the tokens of the text. If layers of the model shorten the text, tokens that are
        named by their positions stand for those of a layer of another length.
        """
        if not survey.pooled:
            return encoded.find_map_sides
        sizes = {(site.kind, site.layer): site.size for site in survey.sites}

        def find_sides(choice: MapChoice) -> MapTokens:
            query_count, key_count = sizes[choice.kind, choice.layers[0]]
            queries, keys = encoded.find_map_sides(choice)
            return name_tokens(queries, query_count), name_tokens(keys, key_count)

        return find_sides

    def encode_prompt(
        self,
        prompt: Prompt,
        truncate: bool,
        *interventions: Intervention,
    ) -> EncodedText:
        """Encode a prompt as the inputs of the model, with their tokens.

        The decoder of an encoder-decoder gets the target of the prompt, or one that the model
        writes. truncate: True to cut a text that is too long. interventions: the changes under
        which the model will run on it. Raises UsageError for a part of the prompt that the model
        cannot read, InputError for a text that does not fit, and ModelError for a tokenizer of
        another model.
        """
        self.require_readable(prompt, interventions)
        if prompt.ids is not None:
            return encode_ids(self.tokenizer, prompt.ids, self.positions, self.name)
        encoded = encode_prompt(self.tokenizer, prompt, self.positions, truncate, self.name)
        require_embeddings(encoded, self.model, self.tokenizer, self.name)
        if reads_target(self.model):
            encoded = add_target(encoded, self.model, self.tokenizer, prompt, self.positions)
            require_embeddings(encoded, self.model, self.tokenizer, self.name)
        return encoded

    def require_readable(self, prompt: Prompt, interventions: Iterable[Intervention]) -> None:
        """Raise UsageError for a part of a prompt that the model cannot read.

        Some depend on whether the model has a decoder that reads a text of its own. A model that is
        changed in its run, by interventions, continues no text.
        """
        is_changed = any(intervention != NOTHING for intervention in interventions)
        has_decoder = reads_target(self.model)
        require_none(
            {"--target": prompt.target and not has_decoder},
            f"{self.name} has no decoder that would read it",
        )
        require_none(
            {"--generate": prompt.generate and has_decoder},
            f"{self.name} writes its target by itself",
        )
        require_none(
            {"--generate": prompt.generate and is_changed},
            "what is changed is a text that is there",
        )
        if prompt.ids is not None:
            self.require_no_target()

    def read_vocabulary(self) -> Vocabulary:
        """Return the token ids of which sequences for the model can be made up.

        Raises UsageError for an encoder-decoder, which reads two texts, and ModelError for a model
        without a table of token embeddings.
        """
        self.require_no_target()
        try:
            embedding_count = self.model.get_input_embeddings().num_embeddings
        except (NotImplementedError, AttributeError):
            raise ModelError(
                f"{self.name} has no table of tokens, of which a text could be made up",
            ) from None
        with silence_library():
            return make_vocabulary(self.tokenizer, embedding_count, self.positions)

    def require_no_target(self) -> None:
        """Raise UsageError for an encoder-decoder, which reads a target beside its text.

        Sequences of token ids are for models that read one text.
        """
        if reads_target(self.model):
            raise UsageError(
                f"{self.name} reads a text and a target: "
                "random tokens are for models that read one text",
            )

    @wait_for_turn
    def losses(self, ids: Ids, change: OutputChange | None = None) -> Floats:
        """Measure how badly the model predicts each token of some sequences from those before it.

        ids: the token ids, (sequences, n). Returns the cross-entropies in nats, (sequences, n - 1),
        since the first token is not predicted. change: a function that replaces the outputs of
        heads. Raises UsageError for a model that predicts no next tokens.
        """
        if reads_target(self.model) or not self.model.can_generate():
            raise UsageError(
                f"{self.name} predicts no next tokens, of which a loss could be measured",
            )
        batch_count = math.ceil(len(ids) / BATCH)
        losses = []
        for batch in np.array_split(ids, batch_count):
            tensor = torch.from_numpy(batch)
            losses.append(self.measure_batch_losses(tensor, change))
        return np.concatenate(losses)

    def measure_batch_losses(self, ids: Tensor, change: OutputChange | None) -> Floats:
        """Measure the losses of a few sequences in one run of the model.

        ids: the token ids, (sequences, n). The losses of the tokens from the second on are
        cross-entropies in nats, (sequences, n - 1). change: a function that replaces the outputs of
        heads.
        """
        inputs = self.place_inputs({"input_ids": ids})
        survey = self.reader.survey(inputs)
        layers = [site.layer for site in survey.sites]
        observer = ChangeObserver(RunEdits(layers, change=change))
        outputs, _ = self.reader.run(inputs, observer)
        predicted = outputs.logits[:, :-1].float()
        expected = inputs["input_ids"][:, 1:]
        losses: Floats = cross_entropy(predicted.mT, expected, reduction="none").cpu().numpy()
        return losses

    def continue_text(
        self,
        encoded: EncodedText,
        survey: ModelSurvey,
        count: int,
        choices: Sequence[MapChoice],
        request: Request,
    ) -> tuple[EncodedText, dict[int, CallResult]]:
        """Let the model continue a text, and return the longer text and the attention over it.

        survey: all calls of attention that a run makes. count: the number of tokens to write, at
        most. choices: the maps that are to be made. request: what to keep. The text is returned
        with what was kept of each call of these maps, by the index of the call in the run. Raises
        UsageError for a model that was loaded without the part that writes, and InputError if the
        weights would not fit into memory.
        """
        if not self.model.can_generate():
            raise UsageError(f"{self.name} was loaded without the part that writes")
        heads = group_heads_by_call(choices, survey.sites)
        inputs = self.place_inputs(encoded.inputs)
        longer = (*encoded.tokens, *make_position_tokens(count))
        whole = replace(request, rows=slice(None), columns=slice(None), query=None, key=None)
        joins_steps = request.keep == "weights" and not self.reader.tapped
        require_capture_memory(
            choices, lambda _: (longer, longer), whole, self.model, writes=joins_steps
        )
        if self.reader.tapped or request.keep != "weights":
            # The model writes first, and its attention is read in a run on the whole text. For
            # softmaxes that are watched are known by the lengths of the text, which grow as it is
            # written, and tiles need its last length.
            with run_undisturbed(self.model):
                with begin_step(WRITING, "token", count) as step:
                    ids = generate_ids(self.model, inputs, count, step)
                ids = drop_end_token(self.model, ids)
            encoded = append_continuation(encoded, self.tokenizer, ids)
            request = request.resolve_window(encoded.find_map_sides(choices[0]))
            inputs = self.place_inputs(encoded.inputs)
            groups = make_key_groups(encoded, survey, request)
            results, _ = self.reader.read_calls(survey, inputs, heads, request, groups=groups)
            return encoded, results

        # One token more than asked for: the last one that is written is never read, and has no row.
        # A token that ends the text has none either.
        steps = GenerationObserver(len(survey.sites), heads)
        with begin_step(WRITING, "token", count + 1) as step:
            write = partial(generate_ids, count=count + 1, step=step)
            ids, _ = self.reader.run(inputs, steps, write)
        encoded = append_continuation(encoded, self.tokenizer, ids[:-1])
        request = request.resolve_window(encoded.find_map_sides(choices[0]))
        return encoded, steps.make_results(request)

    def place_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move the tensors of inputs to the model's device. Raises ModelError, MemoryError."""
        device = self.model.device
        with translate_failures(self.model):
            return {name: move_tensor(value, device) for name, value in inputs.items()}

    @wait_for_turn
    def capture_inputs(self, inputs: Any, request: Request) -> Capture:
        """Run the model on encoded inputs, and return what a request names of its attention.

        inputs: a tensor of token ids, a sequence of arguments, or a mapping of names to arguments.
        Tokens have their texts if there is a tokenizer, and are named by their positions otherwise.
        If a cache of keys and values is among the inputs, the queries are only the tokens that
        follow those in the cache.

        Raises UsageError for a layer or a head that is not there, InputError for inputs that the
        model does not take or a result that does not fit into memory, and ModelError for numbers
        that the model cannot compute.
        """
        inputs = self.place_inputs(prepare_inputs(self.model, inputs))
        past = read_cached_text(self.model, inputs, request)
        with protect_caches(self.model):
            survey = self.reader.survey(inputs)
            choices = choose_maps(survey.sites, request)
            text, tokens = self.spell_input(inputs, "input_ids")
            target, target_tokens = self.spell_input(inputs, "decoder_input_ids")
            find_sides = self.make_input_sides(inputs, survey, tokens, target_tokens)
            require_capture_memory(choices, find_sides, request, self.model)
            heads = group_heads_by_call(choices, survey.sites)
            results, note = self.reader.read_calls(survey, inputs, heads, request)
        fidelity, warning = measure_fidelity(results)
        maps = assemble_maps(choices, survey.sites, results, find_sides, request)
        if past is not None:
            maps = tuple(past.place_map(attention_map, tokens) for attention_map in maps)
            note = past.note if note is None else f"{note}; {past.note}"
        token_count, _ = find_call_size(survey.sites[0], inputs)
        structure = describe_structure(survey, token_count)
        lines = structure, note, warning
        return Capture(
            self.name,
            text,
            maps,
            notes=tuple(line for line in lines if line),
            target=target or None,
            fidelity=fidelity,
            fidelity_reference=self.reader.describe_reference(fidelity),
            output_change=self.reader.change,
        )

    def spell_input(self, inputs: Mapping[str, Any], name: str) -> tuple[str, tuple[Token, ...]]:
        """Return the text and the tokens that the token ids in one of some inputs stand for.

        name: the name of the input, such as "input_ids". Text and tokens are empty if there is no
        such input, or no tokenizer.
        """
        if self.tokenizer is None or name not in inputs:
            return "", ()
        ids = inputs[name][0].tolist()
        return spell_ids(self.tokenizer, ids, known=0, text="")

    def make_input_sides(
        self,
        inputs: Mapping[str, Tensor],
        survey: ModelSurvey,
        text: tuple[Token, ...],
        target: tuple[Token, ...],
    ) -> FindSides:
        """Return a function that gives the tokens of the queries and of the keys of a map.

        They are those of the text or of the target, which the decoder of an encoder-decoder reads.
        If a layer has another number of queries or keys, tokens that are named by their positions
        stand for them.

        inputs: the inputs of the model, which tell how long the texts are. survey: all calls of
        attention that a run makes. text, target: the tokens; empty if they are not known.
        """
        sites = {(site.kind, site.layer): site for site in survey.sites}

        def find_sides(choice: MapChoice) -> MapTokens:
            site = sites[choice.kind, choice.layers[0]]
            size = site.size if survey.pooled else find_call_size(site, inputs)
            query_count, key_count = size
            queries = target if choice.kind in ("decoder", "cross") else text
            keys = target if choice.kind == "decoder" else text
            return name_tokens(queries, query_count), name_tokens(keys, key_count)

        return find_sides


def make_key_groups(
    encoded: EncodedText,
    survey: ModelSurvey,
    request: Request,
) -> dict[int, Tensor]:
    """Return the group of each key, by the number of its call; nothing if groups are not kept.

    survey: all calls of attention that a run makes. request: one that names its segments.
    """
    return group_keys_by_call(survey.sites, encoded.find_sides, request.segments or ())


def name_tokens(tokens: tuple[Token, ...], count: int) -> tuple[Token, ...]:
    """Return tokens if there are as many as a layer reads, else as many positions."""
    return tokens if len(tokens) == count else make_position_tokens(count)


def move_tensor(value: Any, device: torch.device) -> Any:
    """Return a tensor on a device; leave any other value as it is."""
    return value.to(device) if isinstance(value, Tensor) else value


def describe_structure(survey: ModelSurvey, token_count: int) -> str | None:
    """Return a note on the parts of a model, or on its layers that shorten the text, or None.

    survey: all calls of attention that a run of the model makes. token_count: the number of tokens
    of the text.
    """
    if survey.pooled:
        return describe_sizes(survey.sites, token_count)
    return describe_parts(survey.sites)


def require_whole_text(
    sites: Sequence[AttentionSite],
    choices: Sequence[MapChoice],
    token_count: int,
) -> None:
    """Raise InputError if a map has layers whose queries or keys are not all tokens of the text.

    This is asked for a window, that is, a part of the rows and columns of a map.

    sites: all calls of attention, with the numbers of their queries and keys. choices: the maps.
    token_count: the number of tokens of the text.
    """
    sizes = {(site.kind, site.layer): site.size for site in sites}
    whole_size = token_count, token_count
    for choice in choices:
        if all(sizes[choice.kind, layer] == whole_size for layer in choice.layers):
            continue
        raise InputError(
            "a part of a text is shown, and edges are cut, only where all layers read its tokens: "
            "some of these layers have other lengths",
        )


def require_no_inference(model: Any) -> None:
    """Raise UsageError for a model that was made in torch's inference mode.

    Such a model has no gradients.
    """
    tensors = (*model.named_parameters(), *model.named_buffers())
    names = [name for name, tensor in tensors if tensor.is_inference()]
    if names:
        raise UsageError(
            f"this model was made under torch.inference_mode ({names[0]}), "
            "so that it has no gradients: make it outside of inference mode, "
            "or use method='attention'",
        )


def prepare_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """Make the arguments of a model, by name, out of what a user gives as its inputs.

    Arrays and lists of numbers become tensors, and a text alone becomes a batch of one. Inputs that
    change only what the model returns, and not its attention, are left out. An encoder-decoder gets
    the decoder's input that labels tell. Raises InputError if there is no tensor, for lists that
    make none, and for names that the model does not know.
    """
    by_name = name_arguments(model, inputs)
    extra_names = EXTRAS | list_passing_names(model, by_name)
    require_names(model, tuple(by_name), extra_names)
    arguments = {}
    for name, value in by_name.items():
        is_used = name not in RETURNED and value is not None
        if is_used:
            arguments[name] = convert_input(name, value, model.dtype)
    if not any(isinstance(value, Tensor) for value in arguments.values()):
        raise InputError(
            "inputs= holds no tensor: "
            "give input_ids, a mapping of names, or a sequence of arguments",
        )
    for name in arguments.keys() & AXES.keys():
        require_tokens(name, arguments[name])
    return add_decoder_inputs(model, arguments, by_name.get("labels"))


def require_tokens(name: str, value: Any) -> None:
    """Raise InputError unless an input is a tensor of tokens with the axes of a batch of texts.

    It has two axes if it holds token ids, and three if it holds embeddings, and it must not be
    empty. name: the name of the input. value: the user's input, as a tensor if it can be one.
    """
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise InputError(f"{name} is of type {kind}: give a tensor, an array or a list")
    shape, axes = tuple(value.shape), AXES[name]
    if value.ndim != axes:
        raise InputError(f"{name} has {value.ndim} axes, not {axes}: its shape is {shape}")
    if not value.numel():
        raise InputError(f"inputs= holds no tokens: {name} has the shape {shape}")


def name_arguments(model: Any, inputs: Any) -> dict[str, Any]:
    """Return the inputs that a user gives for a model by name.

    Positional ones get the names of the parameters of the model's forward. Raises InputError for
    lists that can mean one array as well as several arguments, for an object of another type, and
    for more inputs than the forward has parameters.
    """
    has_several_items = isinstance(inputs, list) and len(inputs) > 1
    if has_several_items and all(is_list_of_numbers(item) for item in inputs):
        raise InputError(AMBIGUOUS)
    is_container = isinstance(inputs, (Mapping, tuple, list, Tensor))
    if not is_container and not is_array(inputs):
        raise InputError(
            f"inputs= is of type {type(inputs).__name__}: "
            "give a tensor, an array, a mapping or a sequence",
        )
    arguments = Arguments.from_inputs(inputs)
    names = list(signature(model.forward).parameters)
    count = len(arguments.positional)
    if count > len(names):
        kind = type(model).__name__
        raise InputError(f"inputs= holds {count} arguments, more than {kind} takes")
    by_name = dict(zip(names, arguments.positional, strict=False))
    return {**by_name, **arguments.named}


def list_passing_names(model: Any, names: Iterable[str]) -> frozenset[str]:
    """Return those of some names of inputs that an encoder-decoder passes to one of its two models.

    They begin with "encoder_" or "decoder_", and its own forward need not list them. Of any other
    model there are none.
    """
    if not model.config.is_encoder_decoder:
        return frozenset()
    return frozenset(name for name in names if name.startswith(("encoder_", "decoder_")))


def convert_input(name: str, value: Any, dtype: torch.dtype) -> Any:
    """Return an array, a list of numbers or a tensor as a tensor with the axis of a batch of texts.

    The axis is added to the input of a single text. Other values are returned as they are.

    name: the name of the input; embeddings have one axis more than ids. dtype: the type for numbers
    with a fraction.
    """
    if is_array(value) or isinstance(value, list):
        value = make_tensor(value, dtype)
    if not isinstance(value, Tensor):
        return value
    axes_of_one_text = 2 if name.endswith("inputs_embeds") else 1
    return value[None] if value.ndim == axes_of_one_text else value


def add_decoder_inputs(
    model: Any,
    inputs: dict[str, Any],
    labels: Any,
) -> dict[str, Any]:
    """Add the decoder's token ids to the inputs of an encoder-decoder that lack them.

    They are the labels, shifted by one as in training. Inputs of other models, and complete ones,
    are returned as they are. labels: those that the user gave, or None. Raises InputError if ids
    are lacking and there are no labels: most models would read anything in their place, and the
    maps could not be told apart.
    """
    takes_target = "decoder_input_ids" in signature(model.forward).parameters
    needs_target = model.config.is_encoder_decoder and takes_target
    target_names = {"decoder_input_ids", "decoder_inputs_embeds"}
    if not needs_target or inputs.keys() & target_names:
        return inputs
    shift_labels = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if labels is None or shift_labels is None:
        raise InputError(
            f"{type(model).__name__} reads a text and a target: inputs= holds no decoder_input_ids",
        )
    label_ids = convert_input("labels", labels, model.dtype)
    return {**inputs, "decoder_input_ids": shift_labels(labels=label_ids)}
