"""The files of a report: each is what `attnviz show` writes with some options, of captures that are taken once."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from attnviz.cli.options import DATA, FIGURES
from attnviz.cli.output import MAKERS, Made
from attnviz.cli.picture import Options, keep, pictures, prepared, request, tiles
from attnviz.cli.sources import Source, chosen
from attnviz.escape import escape
from attnviz.io.formats import parts as arrays
from attnviz.methods import METHODS, methods_of
from attnviz.record import ATTENTION, AttentionMap, Capture, Kind
from attnviz.request import Keep
from attnviz.selection import ALL, Named, Selection
from attnviz.views.labels import KINDS, model_title

EVERYTHING = "attention"  # the name of files that hold all heads
SPELT = {"view": "--view", "layers": "-l", "heads": "-H", "kind": "--map"}  # the options in which parts differ
NOT_IN_NAMES = re.compile(r"[^\w-]")


class Part(NamedTuple):
    """A picture, or all there is, in several formats."""

    name: str
    forms: tuple[str, ...]
    options: Options
    """Those of `attnviz show` that it needs besides those of the report."""
    layers: Selection = ALL
    """What it shows of the capture."""
    heads: Selection | Named = ALL

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(f"{self.name}.{form}" for form in self.forms)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Its options as they are written on the command line."""
        given = ((flag, self.options.get(name)) for name, flag in SPELT.items())
        return tuple(text for flag, value in given if value is not None for text in (flag, str(value)))


@dataclass
class Report:
    """What is to be written of a source."""

    source: Source
    options: Options
    forms: Sequence[str]
    taken: dict[tuple[Kind | None, Keep, int], Capture] = field(default_factory=dict)

    @property
    def first(self) -> Capture:
        """The capture that was taken first, of everything."""
        return next(iter(self.taken.values()))

    @property
    def title(self) -> str:
        """What it is of."""
        named = (method if method in METHODS else ATTENTION for method in methods_of(self.first.maps))
        return f"{model_title(self.first)}: {', '.join(dict.fromkeys(named))}"

    def parts(self) -> Iterator[Part]:
        """Parts of each kind of map, and a page of all of them."""
        figures, data = (tuple(form for form in self.forms if form in names) for names in (FIGURES, DATA))
        maps = self.take({**self.options, **self.every, "view": "heatmap"}, self.forms[0]).maps
        kinds = tuple(dict.fromkeys(part.kind for part in maps))
        for kind in kinds:
            only, prefix = ({"kind": kind}, f"{kind}-") if len(kinds) > 1 else ({}, "")
            if figures:
                asked = {name: self.options[name] for name in ("layers", "heads")}
                drawn = [part for part in maps if part.kind == kind]
                for part in (Part("grid", figures, {"view": "grid", **asked}), *self.heads(drawn, figures)):
                    yield part._replace(name=prefix + part.name, options={**part.options, **only})
            if data:
                yield Part(prefix + EVERYTHING, data, {**self.every, **only})
        if "html" in self.forms:
            yield Part(EVERYTHING, ("html",), self.every)

    @property
    def every(self) -> Options:
        """The options that choose all that the report is to show."""
        heads = self.options["heads"] or ALL
        return {"layers": None if isinstance(heads, Named) else self.options["layers"] or ALL, "heads": heads}

    def heads(self, maps: Sequence[AttentionMap], forms: tuple[str, ...]) -> Iterator[Part]:
        """A part for each head, or for the heads of each layer that are made one."""
        how, view = self.options["how"], {"view": "heatmap"}
        for part, layer in ((each, layer) for each in maps for layer in each.layers):
            here = Selection(((layer, layer),))
            numbers = [head for head in part.heads if isinstance(head, int)]  # a file may hold a reduction already
            if how and numbers and isinstance(self.options["heads"], Named):
                heads = Named(tuple((layer, head) for head in numbers))
                yield Part(f"L{layer}-{how}", forms, {**view, "heads": heads}, heads=heads)
            elif how or not numbers:
                name = NOT_IN_NAMES.sub("_", how if numbers else str(part.heads[0]))
                yield Part(f"L{layer}-{name}", forms, {**view, "layers": here, "heads": self.every["heads"]}, here)
            else:
                for head in numbers:
                    heads = Named(((layer, head),))
                    yield Part(f"L{layer}H{head}", forms, {**view, "heads": heads}, heads=heads)

    def take(self, options: Options, form: str) -> Capture:
        """A capture of everything, as finely as `attnviz show` with these options would take it."""
        kind = options["kind"] if form in DATA else self.options["kind"]  # data tell how exact they are
        how, most = keep(options, form), tiles(options, form, None) if self.options["method"] == ATTENTION else 1
        for key, found in self.taken.items():
            if key == (kind, how, most) or (key[0] == kind and how == "tiles" and is_exact(found, most)):
                return found
        wanted = request({**options, **self.every, "kind": kind}, form, None)
        found = self.source(replace(wanted, preferred=(), keep=how, tiles=most))
        return self.taken.setdefault((kind, how, most), found)

    def capture(self, part: Part, form: str) -> tuple[Capture, Options]:
        """What `attnviz show` would draw for a file, and its options."""
        options = {**self.options, "layers": None, **part.options}
        wanted = replace(request(options, form, None), layers=part.layers, heads=part.heads)
        found = chosen(self.take(options, form), wanted)
        return prepared(found, options, form), options

    def make(self, part: Part, form: str) -> Made:
        """The content of a file."""
        capture, options = self.capture(part, form)
        return MAKERS[form](capture, form, options)

    def told(self, part: Part) -> tuple[str, tuple[str, ...]]:
        """Title and caption of a part."""
        capture, options = self.capture(part, part.forms[0])
        if part.forms[0] in FIGURES:
            (picture, *_) = pictures(capture, options)
            return picture.title, picture.caption
        kinds = [KINDS[kind] for kind in dict.fromkeys(part.kind for part in capture.maps)]
        return f"everything: {', '.join(kinds)}", tuple(map(escape, capture.notes))

    def digest(self, arguments: str) -> str:
        """What the report is of: the same for the same numbers drawn by the same command."""
        capture = self.first
        found = hashlib.sha256(repr((arguments, capture.model, capture.text, capture.notes)).encode())
        for part in capture.maps:
            found.update(repr((part.kind, part.layers, part.heads, part.queries, part.keys)).encode())
            for array in arrays(part).values():
                found.update(array)  # without a copy: tiles of all heads are large
        return found.hexdigest()


def is_exact(capture: Capture, most: int) -> bool:
    """Whether a capture holds weights, of no more tokens than there may be tiles on a side."""
    return all(part.weights is not None and max(len(part.queries), len(part.keys)) <= most for part in capture.maps)


def split(forms: str) -> tuple[str, ...]:
    """Formats by name, parted by commas. Raises ValueError naming those that there are."""
    known = *FIGURES, "html", *DATA
    found = tuple(dict.fromkeys(form.strip().lower().removeprefix(".") for form in forms.split(",")))
    for form in found:
        if form not in known:
            raise ValueError(f"{form!r} is no format: one of {', '.join(known)}")
    return found
