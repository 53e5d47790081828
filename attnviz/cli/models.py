"""`attnviz models`."""

import json
import math
from dataclasses import asdict
from typing import Any

import click

from attnviz.cli.options import talk_options
from attnviz.escape import escape
from attnviz.lm import store
from attnviz.lm.model import shapes
from attnviz.models import names

LICENCE = "MIT; corpus: King James Bible (public domain), WordNet 3.0 (Princeton), see NOTICE.md beside the weights"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document and nothing else.")
@talk_options
def command(as_json: bool, quiet: bool) -> None:  # noqa: ARG001 - there is nothing to silence
    """List the models that --model takes: the built-in one, aliases, and what the local cache holds.

    \b
    Examples:
      attnviz models
      attnviz models --json
    """
    builtin, cached = describe_builtin(), cached_repositories()
    if as_json:
        document = {"schema": "attnviz/1", "builtin": builtin, "aliases": names.ALIASES, "cached": cached}
        click.echo(json.dumps(document))
        return
    click.echo("builtin")
    for name, value in builtin.items():
        click.echo(f"  {name.replace('_', ' '):<20} {told(value)}")
    click.echo("\naliases (* in the local cache)")
    for alias, repository in names.ALIASES.items():
        click.echo(f"{'*' if repository in cached else ' ':>2} {alias:<23} {repository}")
    click.echo("\nalso in the local cache")
    for repository in sorted(set(cached) - set(names.ALIASES.values())) or ["(nothing)"]:
        click.echo(f"   {escape(repository)}")
    click.echo("\nor any hub id, or a folder with config.json, safetensors and a tokenizer")


def describe_builtin() -> dict[str, Any]:
    """Size, training, licence and scores of the built-in model."""
    config, about = store.read_config(store.BUILTIN)
    return {
        **asdict(config),
        "parameters": sum(math.prod(shape) for shape in shapes(config).values()),
        "megabytes": round((store.BUILTIN / store.WEIGHTS).stat().st_size / 1e6, 1),
        "corpus": f"{about['corpus_tokens']:,} tokens of the King James Bible and WordNet 3.0 glosses",
        "licence": LICENCE,
        "bits_per_character": about["bits_per_character"],
        **about["scores"],
    }


def told(value: Any) -> str:
    """A value for the eye."""
    if isinstance(value, dict):
        return "{head} {mean:.2f} ± {sd:.2f}, over {n} sequences of repeated random tokens".format(**value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def cached_repositories() -> list[str]:
    """The model repositories of the local Hugging Face cache, by name."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir()
    except (CacheNotFound, ValueError):  # ValueError where the cache is no folder
        return []
    return sorted(repository.repo_id for repository in found.repos if repository.repo_type == "model")
