"""`attnviz models`."""

import math
from collections.abc import Sequence
from dataclasses import asdict

import click

from attnviz.cli.options import talk_options
from attnviz.cli.talk import Talk
from attnviz.escape import escape
from attnviz.io.documents import format_document_json
from attnviz.lm import store
from attnviz.lm.model import list_parameter_shapes
from attnviz.models import names
from attnviz.models.hub_cache import list_cached_models

LICENCE = (
    "MIT; corpus: King James Bible (public domain), WordNet 3.0 (Princeton), see NOTICE.md beside"
    " the weights"
)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@talk_options
def command(as_json: bool, talk: Talk) -> None:  # noqa: ARG001 - there is nothing to silence
    """List the models that --model takes: the built-in one, aliases, and the local cache.

    \b
    Examples:
      attnviz models
      attnviz models --json
    """
    builtin, cached = describe_builtin(), list_cached_models()
    if as_json:
        document = {"builtin": builtin, "aliases": names.ALIASES, "cached": cached}
        click.echo(format_document_json(document).decode(), nl=False)
        return
    for line in list_models(builtin, cached):
        click.echo(line)


def list_models(builtin: dict[str, object], cached: Sequence[str]) -> list[str]:
    """List what --model takes, in lines for a reader.

    builtin: facts about the built-in model, by name. cached: the names of the repositories in the
    local cache.
    """
    lines = ["builtin"]
    lines += [
        f"  {name.replace('_', ' '):<20} {format_value(value)}" for name, value in builtin.items()
    ]
    lines += ["", "aliases (* in the local cache)"]
    for alias, repository in names.ALIASES.items():
        mark = "*" if repository in cached else " "
        lines.append(f"{mark:>2} {alias:<23} {repository}")
    lines += ["", "also in the local cache"]
    others = sorted(set(cached) - set(names.ALIASES.values()))
    lines += [f"   {escape(repository)}" for repository in others or ["(nothing)"]]
    return [*lines, "", "or any hub id, or a folder with config.json, safetensors and a tokenizer"]


def describe_builtin() -> dict[str, object]:
    """Return facts about the built-in model by name: its size, training, licence and scores."""
    config, about = store.read_model_config(store.BUILTIN)
    parameters = sum(math.prod(shape) for shape in list_parameter_shapes(config).values())
    size = (store.BUILTIN / store.WEIGHTS).stat().st_size
    return {
        **asdict(config),
        "parameters": parameters,
        "megabytes": round(size / 1e6, 1),
        "corpus": (
            f"{about['corpus_tokens']:,} tokens of the King James Bible and WordNet 3.0 glosses"
        ),
        "licence": LICENCE,
        "bits_per_character": about["bits_per_character"],
        **about["scores"],
    }


def format_value(value: object) -> str:
    """Format a number, a text, or the score of a head, for the eye."""
    if isinstance(value, dict):
        score = "{head} {mean:.2f} ± {sd:.2f}, over {n} sequences of repeated random tokens"
        return score.format(**value)
    return f"{value:,}" if isinstance(value, int) else str(value)
