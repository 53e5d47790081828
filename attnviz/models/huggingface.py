"""Any transformers model: one from a folder, or one that is loaded already."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnviz.engine.probe import Found
from attnviz.models.checks import require_none
from attnviz.models.generation import Steps
from attnviz.models.huggingface_loading import load_parts, position_limit
from attnviz.models.huggingface_reading import Reading, sizes_of
from attnviz.models.huggingface_text import Encoded, continuation, encode, spell, with_target, write
from attnviz.models.maps import Choice, Sides, assemble, choose, cut_edges, fidelity, places, require_room, wanted_heads
from attnviz.models.restore import as_found
from attnviz.record import Capture
from attnviz.request import Edge, Placement, Prompt, Request


class HuggingFace:
    """A transformers model with its tokenizer."""

    def __init__(self, name: str, model: Any, tokenizer: Any = None) -> None:
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.reading = Reading(model)

    @classmethod
    def load(cls, name: str, folder: Path, placement: Placement, *, writes: bool) -> "HuggingFace":
        """From a local folder: safetensors only, no code from it. ``writes``: with the head that continues a text."""
        return cls(name, *load_parts(folder, placement, writes=writes))

    @property
    def positions(self) -> int | None:
        """How many tokens the model reads at most."""
        limits = position_limit(self.model), self.tokenizer.model_max_length
        return min((limit for limit in limits if limit and 0 < limit < 1 << 31), default=None)

    def capture(self, prompt: Prompt, request: Request, cuts: tuple[Edge, ...] = ()) -> Capture:
        """See ``Model.capture``."""
        both_sides = self.model.config.is_encoder_decoder
        require_none(
            {"--target": prompt.target is not None and not both_sides}, f"{self.name} has no decoder beside it"
        )
        require_none({"--generate": bool(prompt.generate and both_sides)}, f"{self.name} writes its target anyway")
        encoded = encode(self.tokenizer, prompt, self.positions, request.truncate, self.name)
        if both_sides:
            encoded = with_target(encoded, self.model, self.tokenizer, prompt)
        sites = self.reading.survey(self.placed(encoded.inputs))
        chosen = choose(sites, request)
        if prompt.generate:
            encoded, found = self.continued(encoded, prompt.generate, chosen, request)
            note = None
        else:
            require_room(chosen, lambda choice: encoded.sides(choice.kind), request)
            inputs = self.placed(encoded.inputs)
            found, note = self.reading.read(inputs, wanted_heads(chosen, sites), request, cut_edges(cuts, sites))
        measured, warning = fidelity(found, self.model.dtype)
        return Capture(
            self.name,
            encoded.text,
            assemble(chosen, sites, found, lambda choice: encoded.sides(choice.kind), request),
            tuple(line for line in (*encoded.notes, note, warning) if line),
            prompt.pair,
            encoded.target,
            measured,
        )

    def continued(
        self, encoded: Encoded, count: int, chosen: Sequence[Choice], request: Request
    ) -> tuple[Encoded, dict[int, Found]]:
        """A text continued by so many tokens, and what was found meanwhile."""
        heads = wanted_heads(chosen, self.reading.sites)
        inputs = self.placed(encoded.inputs)
        if self.reading.tapped:  # these are read by the lengths of their calls, which grow as they write
            with as_found(self.model), torch.no_grad():
                encoded = continuation(encoded, self.tokenizer, write(self.model, inputs, count))
            require_room(chosen, lambda choice: encoded.sides(choice.kind), request)
            return encoded, self.reading.read(self.placed(encoded.inputs), heads, request, {})[0]
        steps = Steps(len(self.reading.sites), heads)
        # One more than asked for: what was written last is never read, and has no row.
        ids = self.reading.run(inputs, steps, lambda model, inputs: write(model, inputs, count + 1))[0]
        return continuation(encoded, self.tokenizer, ids[:-1]), steps.found(request)

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device."""
        return {name: part.to(self.model.device) for name, part in inputs.items()}

    def capture_inputs(self, inputs: Mapping[str, Tensor], request: Request) -> Capture:
        """The same for inputs that are encoded already; tokens are named by the tokenizer, if there is one."""
        inputs = self.placed(inputs)
        sites = self.reading.survey(inputs)
        chosen = choose(sites, request)
        found, note = self.reading.read(inputs, wanted_heads(chosen, sites), request, {})
        measured, warning = fidelity(found, self.model.dtype)
        sides = self.sides(inputs)
        maps = assemble(chosen, sites, found, sides, request)
        return Capture(self.name, "", maps, tuple(line for line in (note, warning) if line), fidelity=measured)

    def sides(self, inputs: Mapping[str, Tensor]) -> Callable[[Choice], Sides]:
        """The tokens of each map of such inputs: by name where they are tokens, else by place."""
        text, target = (
            spell(self.tokenizer, inputs[name][0].tolist(), 0, "")[1] if self.tokenizer and name in inputs else ()
            for name in ("input_ids", "decoder_input_ids")
        )
        sizes = {(site.kind, site.layer): site.size for site in self.reading.sites}

        def of(choice: Choice) -> Sides:
            n, m = sizes_of(choice.kind, inputs) or sizes[choice.kind, choice.layers[0]]
            queries = target if choice.kind in ("decoder", "cross") else text
            keys = target if choice.kind == "decoder" else text
            return queries if len(queries) == n else places(n), keys if len(keys) == m else places(m)

        return of
