"""Inputs that a model may be able to read: texts, pictures and sounds of the names that its ``forward`` takes."""

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from tests.sweep_models import FIRST_SPECIAL, VOCABULARY

TOKENS, TARGETS = 12, 7
GRIDS = "image_grid_thw", "grid_thw", "image_grid_hws", "spatial_shapes"
SERIES = (
    "past_values",
    "past_time_features",
    "past_observed_mask",
    "future_values",
    "future_time_features",
)
STATES = (
    *(
        "query_embeds",
        "hidden_states",
        "inputs_embeds",
        "embeddings",
        "queries",
        "inputs",
        "encoder_hidden_states",
    ),
    *("visual_feats", "visual_pos"),
)
ALWAYS = (
    "bbox",
    "visual_feats",
    "visual_pos",
    "flattened_patches",
    "noise",
    *SERIES,
)  # optional by default, but not in truth
Inputs = dict[str, Any]


def candidate_inputs(model: PreTrainedModel) -> Iterator[Inputs]:
    """Yield what a model may be able to read, the richest first: of all kinds, of two, of one."""
    maker = Maker(model)
    pictures, sounds = list(maker.pictures()), list(maker.sounds())
    for words in (maker.words(), maker.targets(), {}):
        both = product(pictures[:3], sounds[:3])
        alone = [
            *((picture, {}) for picture in pictures),
            *(({}, sound) for sound in sounds),
            ({}, {}),
        ]
        for picture, sound in (*both, *alone):
            if words or picture or sound:
                yield from maker.complete({**words, **picture, **sound})
    yield from maker.complete({})


@dataclass
class Maker:
    """Makes inputs for one model; always the same."""

    model: PreTrainedModel
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """The arguments of the model."""
        return inspect.signature(self.model.forward).parameters

    def normal(self, *shape: int) -> Tensor:
        """Return normal numbers."""
        return torch.randn(*shape, generator=self.generator)

    def ids(self, count: int) -> Tensor:
        """Return token ids of one text, no special ones."""
        text = self.text_config
        size = getattr(text, "vocab_size", None)
        high = min(size if isinstance(size, int) else VOCABULARY, FIRST_SPECIAL)
        return torch.randint(min(3, high - 1), high, (1, count), generator=self.generator)

    @property
    def text_config(self) -> Any:
        """The config of the part that reads text, where there is one."""
        try:
            return self.model.config.get_text_config(decoder=True)
        except ValueError:  # there are several
            return self.model.config

    def value(self, *names: str) -> Any:
        """Return the first of some values that the model's config, or a part of it, has."""
        for name in names:
            for part in parts_of(self.model.config):
                if getattr(part, name, None) is not None:
                    return getattr(part, name)
        return None

    def words(self) -> Inputs:
        """Return the ids of a text, and of a decoder's."""
        made = {"input_ids": TOKENS, "decoder_input_ids": TARGETS}
        return {name: self.ids(count) for name, count in made.items() if name in self.takes}

    def targets(self) -> Inputs:
        """Return the ids of a decoder's text alone."""
        return {"decoder_input_ids": self.ids(TARGETS)} if "decoder_input_ids" in self.takes else {}

    def pictures(self) -> Iterator[Inputs]:
        """Yield pictures: as patches with their grid, whole, and as a short film."""
        names = ("pixel_values", "pixel_values_videos", "hidden_states")
        name = next((name for name in names if name in self.takes), None)
        patch = side_of(self.value("patch_size"), 16)
        if name is None or (name == "hidden_states" and not self.value("patch_size", "image_size")):
            return
        channels = side_of(self.value("num_channels", "in_channels", "in_chans"), 3)
        yield from self.patches(name, channels, patch)
        size = self.value("image_size") or 4 * patch
        sides = tuple(size)[-2:] if isinstance(size, (list, tuple)) else (size, size)
        for each in dict.fromkeys((sides, (64, 64), (224, 224))):
            yield {name: self.normal(1, channels, *each)}
        for frames in dict.fromkeys((1, self.value("num_frames", "frames_per_clip") or 2)):
            yield {name: self.normal(1, frames, channels, *sides)}

    def patches(self, name: str, channels: int, patch: int) -> Iterator[Inputs]:
        """Yield a picture of 4 x 4 patches, with the grid in which they stand."""
        grid = next(
            (
                n
                for n in ("image_grid_thw", "grid_thw", "image_grid_hws", "spatial_shapes")
                if n in self.takes
            ),
            None,
        )
        if grid is None:
            return
        depth = side_of(self.value("temporal_patch_size"), 1)
        shape = torch.tensor([[1, 4, 4]])
        if grid in ("image_grid_hws", "spatial_shapes"):
            shape = shape[:, 1:]
        for width in dict.fromkeys(
            (channels * depth * patch**2, channels * patch**2, 2 * channels * patch**2)
        ):
            yield {name: self.normal(16, width), grid: shape}
            yield {name: self.normal(1, 16, width), grid: shape}
        yield {name: self.normal(16, channels, patch, patch), grid: shape}
        yield {name: self.normal(1, 16, channels, patch, patch), grid: shape}

    def sounds(self) -> Iterator[Inputs]:
        """Yield sounds: as spectrograms, and as waves."""
        names = (
            "feature_projection_input_dim",
            "num_mel_bins",
            "feature_size",
            "input_feat_per_channel",
            "n_mels",
        )
        bands = self.value(*names, "input_dim") or 80
        steps = 2 * side_of(self.value("max_source_positions"), 32)
        if "input_features" in self.takes:
            shapes = (
                (1, bands, steps),
                (1, steps, bands),
                (1, bands, 200),
                (1, 200, bands),
                (1, 1, 1001, 64),
            )
            for shape in dict.fromkeys(shapes):
                yield from self.masked({"input_features": self.normal(*shape)}, max(shape[1:]))
        if "input_values" in self.takes:
            for shape in (
                (1, 2000),
                (1, 1, 2000),
                (1, 64, bands),
                (1, 128, bands),
                (1, bands, 64),
                (1, 1024, 128),
            ):
                yield from self.masked({"input_values": self.normal(*shape)}, max(shape[1:]))

    def masked(self, sound: Inputs, length: int) -> Iterator[Inputs]:
        """Yield a sound, and the same with a mask that hides nothing if the model takes one."""
        masks = ("input_features_mask", "feature_attention_mask", "padding_mask", "attention_mask")
        for name in masks:
            if name in self.takes and (name != "attention_mask" or "input_ids" not in self.takes):
                yield sound | {name: torch.ones(1, length, dtype=torch.long)}
        yield sound

    def complete(self, inputs: Inputs) -> Iterator[Inputs]:
        """Yield inputs with places for pictures and sounds in the text, and with what else the model requires."""
        required = self.required(inputs)
        if required is None:
            return
        whole = inputs | required
        placed = self.with_places(whole)
        if placed is not None:
            yield placed
        if whole:
            yield whole

    def required(self, inputs: Inputs) -> Inputs | None:
        """Return what the model requires besides, by the names; None if a name is not known."""
        made: Inputs = {}
        for name, parameter in self.takes.items():
            optional = parameter.default is not inspect.Parameter.empty
            several = parameter.kind in (
                inspect.Parameter.VAR_KEYWORD,
                inspect.Parameter.VAR_POSITIONAL,
            )
            if name in inputs or several or (optional and name not in ALWAYS):
                continue
            value = self.make(name)
            if value is None:
                return None
            made[name] = value
        if not inputs and not made:
            states = next(
                (name for name in ("inputs_embeds", "hidden_states") if name in self.takes), None
            )
            return {} if states is None else {states: self.make(states)}
        return made

    def make(self, name: str) -> Any:
        """Return an input that is known by its name alone, or None."""
        if name in SERIES:
            return self.series(name)
        if name in STATES:
            return self.states(name)
        if name == "bbox":
            low = torch.randint(0, 8, (1, TOKENS, 2), generator=self.generator)
            return torch.cat(
                [low, low + torch.randint(1, 8, (1, TOKENS, 2), generator=self.generator)], -1
            )
        if name == "flattened_patches":
            places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5)).float()
            return torch.cat(
                [places[None], self.normal(1, 16, self.value("patch_embed_hidden_size"))], -1
            )
        if name == "noise":  # which patches a masked autoencoder hides
            return self.normal(1, 16)
        if name in ("attention_mask", "pixel_attention_mask"):
            return torch.ones(1, TOKENS, dtype=torch.long)
        return None

    def states(self, name: str) -> Tensor:
        """Return vectors, as many of each kind and as wide as the model takes."""
        width = side_of(self.value("hidden_size", "d_model", "hidden_dim", "embed_dim"), 32)
        if name == "encoder_hidden_states":
            return self.normal(
                1,
                TARGETS + 2,
                self.value("encoder_hidden_size", "cross_attention_hidden_size") or width,
            )
        if name == "visual_pos":
            return self.normal(1, 5, 4)
        if name == "visual_feats":
            return self.normal(1, 5, self.value("visual_feat_dim"))
        if name == "hidden_states":
            return self.normal(1, TOKENS, self.value("input_dim") or width)
        if name == "inputs":
            return self.normal(1, TOKENS, self.value("d_model") or width)
        return self.normal(1, TOKENS, width)

    def series(self, name: str) -> Tensor:
        """Return a part of a time series: values, features of their times, or which were seen."""
        config: Any = self.model.config
        length = config.context_length + max(getattr(config, "lags_sequence", None) or [0])
        if name.startswith("future"):
            length = config.prediction_length
        if name.endswith("features"):
            return self.normal(1, length, config.num_time_features)
        return torch.ones(1, length) if name.endswith("mask") else self.normal(1, length)

    def with_places(self, inputs: Inputs) -> Inputs | None:
        """Return inputs with as many places in the text as the model makes features of a picture and of a sound."""
        if "input_ids" not in inputs:
            return None
        ids, kinds = inputs["input_ids"], torch.zeros(1, 4, dtype=torch.long)
        places: list[Tensor] = []
        for number, kind in enumerate(("image", "audio"), 1):
            token = self.value(f"{kind}_token_id", f"{kind}_token_index")
            count = self.count_features(kind, inputs)
            if count and token is not None:
                places.append(torch.full((1, count), token))
                kinds = torch.cat([kinds, torch.full((1, count), number)], 1)
        if not places:
            return None
        after = ids[:, 4:]
        made = inputs | {"input_ids": torch.cat([ids[:, :4], *places, after], 1)}
        if "mm_token_type_ids" in self.takes:
            made["mm_token_type_ids"] = torch.cat([kinds, torch.zeros_like(after)], 1)
        return made

    def count_features(self, kind: str, inputs: Inputs) -> int:
        """Return how many features a model makes of a picture or a sound; 0 if it tells nothing."""
        function = getattr(self.model, f"get_{kind}_features", None)
        if function is None:
            return 0
        parameters = inspect.signature(function).parameters
        given = {
            name: part
            for name, part in inputs.items()
            if name in parameters and name != "input_ids"
        }
        try:
            with torch.no_grad():
                features = function(**given)
        except Exception:  # another shape may do
            return 0
        return rows_of(features)


def parts_of(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """Yield a config and all configs in it, from the outside in."""
    level = [config]
    while level:
        yield from level
        level = [
            inner
            for part in level
            for inner in vars(part).values()
            if isinstance(inner, PreTrainedConfig)
        ]


def side_of(value: Any, default: int) -> int:
    """Return a size that configs give as a number or as several."""
    if isinstance(value, (list, tuple)):
        value = value[-1]
    return value if isinstance(value, int) else default


def rows_of(features: Any) -> int:
    """Return how many vectors the features of a picture are, however the model gives them."""
    if hasattr(features, "pooler_output"):
        features = features.pooler_output
    if isinstance(features, (list, tuple)):
        return sum(rows_of(part) for part in features)
    return math.prod(features.shape[:-1]) if isinstance(features, Tensor) else 0
