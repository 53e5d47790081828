"""The files of a report: each is what `attnviz show` writes with some options, of captures that are taken once."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from attnviz.cli.drawing import Options, keep, pictures, prepared, request, tiles
from attnviz.cli.options import DATA, FIGURES
from attnviz.cli.output import MAKERS, Made
from attnviz.cli.take import Source, chosen
from attnviz.record import AttentionMap, Capture
from attnviz.selection import ALL, Named, Selection
from attnviz.storage import to_attn
from attnviz.views.axes import model_title

EVERYTHING = "attention"  # the name of files that hold all heads


class Part(NamedTuple):
    """A picture, or all there is, in several formats."""

    name: str
    forms: tuple[str, ...]
    changed: Options
    """The options of `attnviz show` that differ from those of the report."""
    arguments: tuple[str, ...]
    """The same as they are written on the command line."""

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files."""
        return tuple(f"{self.name}.{form}" for form in self.forms)


@dataclass
class Report:
    """What is to be written of a source."""

    source: Source
    options: Options
    forms: Sequence[str]
    taken: dict[tuple[str, int], Capture] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is of."""
        return f"{model_title(next(iter(self.taken.values())))}: attention"

    def parts(self) -> Iterator[Part]:
        """Parts of each kind of map, and a page of all of them."""
        figures, data = (tuple(form for form in self.forms if form in names) for names in (FIGURES, DATA))
        whole = self.whole()
        kinds = tuple(dict.fromkeys(part.kind for part in whole.maps))
        everything = *spelt(self.every), *self.merging
        for kind in kinds:
            several = len(kinds) > 1
            only, told, prefix = ({"kind": kind}, ("--map", kind), f"{kind}-") if several else ({}, (), "")
            if figures:
                yield from self.figures([part for part in whole.maps if part.kind == kind], figures, prefix, only, told)
            if data:
                yield Part(prefix + EVERYTHING, data, {**self.every, **only}, (*everything, *told))
        if "html" in self.forms:
            yield Part(EVERYTHING, ("html",), self.every, everything)

    def figures(
        self, maps: Sequence[AttentionMap], forms: tuple[str, ...], prefix: str, only: Options, told: tuple[str, ...]
    ) -> Iterator[Part]:
        """The figures of maps of one kind: all of them as thumbnails, and each alone."""
        chosen = {name: self.options[name] for name in ("layers", "heads") if self.options[name] is not None}
        arguments = "--view", "grid", *spelt(chosen), *self.merging, *told
        yield Part(f"{prefix}grid", forms, {**only, "view": "grid"}, arguments)
        for layer, head in ((layer, head) for part in maps for layer in part.layers for head in part.heads):
            name, selected = self.selected(layer, head)
            arguments = "--view", "heatmap", *spelt(selected), *self.merging, *told
            yield Part(prefix + name, forms, {**only, **selected, "view": "heatmap"}, arguments)

    @property
    def every(self) -> Options:
        """The options that choose all that the report is to show."""
        heads = self.options["heads"] or ALL
        return {"layers": None if isinstance(heads, Named) else self.options["layers"] or ALL, "heads": heads}

    def selected(self, layer: int, head: int | str) -> tuple[str, Options]:
        """The name of a picture of a head, or of the heads of a layer made one, and the options that choose it."""
        if isinstance(head, int):
            return f"L{layer}H{head}", {"layers": None, "heads": Named(((layer, head),))}
        heads = self.options["heads"]
        if isinstance(heads, Named):
            return f"L{layer}-{head}", {"layers": None, "heads": Named(tuple(h for h in heads.heads if h[0] == layer))}
        return f"L{layer}-{head}", {"layers": Selection(((layer, layer),)), "heads": heads or ALL}

    @property
    def merging(self) -> tuple[str, ...]:
        """The option that makes one of several heads, as it is written."""
        return ("--reduce", self.options["how"]) if self.options["how"] else ()

    def whole(self) -> Capture:
        """Everything that the report shows, its heads made one if that is asked for."""
        form = self.forms[0]
        options = {**self.options, **self.every, "view": "heatmap" if form in FIGURES else None}
        return prepared(self.take(options, form), options, form)

    def take(self, options: Options, form: str) -> Capture:
        """A capture of everything, as finely as `attnviz show` with these options would take it."""
        fineness = keep(options, form), tiles(options, form, None)
        if fineness not in self.taken:
            wanted = request({**options, **{name: self.options[name] for name in ("kind", "heads")}}, form, None)
            layers = ALL if isinstance(self.options["heads"], Named) else self.options["layers"] or ALL
            found = self.source(replace(wanted, layers=layers, preferred=()))
            exact = all(part.weights is not None for part in found.maps)
            self.taken |= {(how, fineness[1]): found for how in (("weights", "tiles") if exact else fineness[:1])}
        return self.taken[fineness]

    def capture(self, part: Part, form: str) -> tuple[Capture, Options]:
        """What `attnviz show` would draw for a file, and its options."""
        options = {**self.options, "title": None, **part.changed}
        found = chosen(self.take(options, form), request(options, form, None))
        return prepared(found, options, form), options

    def make(self, part: Part, form: str) -> Made:
        """The content of a file."""
        capture, options = self.capture(part, form)
        return MAKERS[form](capture, form, options)

    def told(self, part: Part) -> tuple[str, tuple[str, ...]]:
        """Title and caption of a part."""
        capture, options = self.capture(part, part.forms[0])
        if part.forms[0] not in FIGURES:
            return "Everything", capture.notes
        (picture, *_) = pictures(capture, options)
        return picture.title, picture.caption

    def digest(self, arguments: str) -> str:
        """What the report is of: the same for the same numbers drawn by the same command."""
        found = hashlib.sha256(arguments.encode())
        for name in sorted(self.taken):
            found.update(to_attn(self.taken[name]))
        return found.hexdigest()


def spelt(selected: Options) -> tuple[str, ...]:
    """Options for layers and heads as they are written; None is left out."""
    named = (("-l", selected.get("layers")), ("-H", selected.get("heads")))
    return tuple(text for name, value in named if value is not None for text in (name, str(value)))


def split(forms: str) -> tuple[str, ...]:
    """Formats by name, parted by commas. Raises ValueError naming those that there are."""
    known = *FIGURES, "html", *DATA
    found = tuple(dict.fromkeys(form.strip().lower().removeprefix(".") for form in forms.split(",")))
    for form in found:
        if form not in known:
            raise ValueError(f"{form!r} is no format: one of {', '.join(known)}")
    return found
