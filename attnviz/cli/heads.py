"""`attnviz heads`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attnviz.analysis.roles import ROLES
from attnviz.cli.options import (
    READING,
    VIEW,
    ModelOptions,
    ResultOptions,
    SelectionOptions,
    heads_options,
    result_options,
    title_option,
    untruncated_model_options,
)
from attnviz.cli.output import (
    choose_result_destination,
    deliver,
    make_result_answer,
)
from attnviz.cli.parameters import (
    SectionedCommand,
    option_group,
    option_section,
)
from attnviz.cli.screen import open_screen
from attnviz.cli.sources import load_chosen_model
from attnviz.cli.talk import Talk
from attnviz.errors import ModelError
from attnviz.experiments import sequences
from attnviz.experiments.heads import find_head_roles
from attnviz.io.documents import format_document_json
from attnviz.io.samples import PLAIN_ENGLISH, read_sample
from attnviz.lm import corpus
from attnviz.models.base import require_losses
from attnviz.results.head_roles import (
    SequenceSettings,
    describe_role_definitions,
    explain_roles,
)

if TYPE_CHECKING:
    from attnviz.models import Model


@dataclass(frozen=True)
class RoleOptions:
    """What is shown of the heads."""

    role: str | None = None
    ablate: bool = False
    explain: bool = False


role_options = option_group(
    "view",
    RoleOptions,
    option_section(
        VIEW,
        click.option(
            "--role",
            type=click.Choice([*ROLES]),
            metavar="ROLE",
            help=f"One score: {', '.join(ROLES)}.",
        ),
        click.option(
            "--ablate",
            is_flag=True,
            help="Measure the loss without the heads that have a name, or are chosen.",
        ),
        click.option(
            "--explain-roles",
            "explain",
            is_flag=True,
            help="Say what the roles are, and where they are from.",
        ),
    ),
)


@dataclass(frozen=True)
class SequenceOptions:
    """What the heads are measured on."""

    sequences: int = 16
    block: int = 25
    seed: int = 0
    corpus: str | None = None

    @property
    def setting(self) -> SequenceSettings:
        """The number, the length and the seed of the random sequences."""
        return SequenceSettings(self.sequences, self.block, self.seed)


sequence_options = option_group(
    "data",
    SequenceOptions,
    option_section(
        READING,
        click.option(
            "--sequences",
            type=click.IntRange(1, 4096),
            default=16,
            show_default=True,
            help="Random sequences.",
        ),
        click.option(
            "--block",
            type=click.IntRange(4, 4096),
            default=25,
            show_default=True,
            help="Tokens that repeat.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            help="Of all that is random.",
        ),
        click.option(
            "--corpus",
            metavar="FILE",
            help=f"Texts, an empty line between two: {sequences.MOST_DOCUMENTS} at most are read.",
        ),
    ),
)


@click.command(cls=SectionedCommand)
@heads_options
@role_options
@title_option
@sequence_options
@untruncated_model_options
@result_options
def command(
    selection: SelectionOptions,
    view: RoleOptions,
    data: SequenceOptions,
    model: ModelOptions,
    result: ResultOptions,
) -> None:
    """Find what each head is: induction, previous token, sink and others.

    With --ablate also what the model loses without it. Scores are measured on random tokens that
    repeat and on texts: the samples in plain English, or those of --corpus, of each the first 1,000
    characters, cut to what the model reads. A head is named where a score is far above chance.

    \b
    Examples:
      attnviz heads
      attnviz heads --explain-roles
      attnviz heads --role induction
      attnviz heads --ablate -H L0H2,L1H3
      attnviz heads --model bert-base -o heads.png
      attnviz heads --sequences 4 --block 10 --json
    """
    if view.explain:
        print_roles(as_json=result.file.as_json)
        return
    screen = open_screen(result.screen)
    destination = choose_result_destination(result)
    texts = read_texts(data.corpus)
    roles = find_head_roles(
        load_measurable_model(model, result.talk, ablates=view.ablate),
        texts,
        data.setting,
        layers=selection.layers,
        heads=selection.heads,
        role=view.role,
        ablates=view.ablate,
    )
    deliver(make_result_answer(roles, result.title), destination, screen, result)
    if destination is None and not view.ablate:
        result.talk.note(
            "see more: --role, --explain-roles; --ablate: the loss without them; -o FILE.csv",
        )


def print_roles(*, as_json: bool) -> None:
    """Print what each role of a head is, as lines for a reader or as a JSON document."""
    if as_json:
        click.echo(
            format_document_json({"definitions": describe_role_definitions()}).decode(),
            nl=False,
        )
        return
    for line in explain_roles():
        click.echo(line)


def read_texts(path: str | None) -> list[str]:
    """Read the texts on which heads are measured, and return the beginning of each.

    path: a text file or a folder; None for the sample texts in plain English. Raises InputError.
    """
    documents = (
        [read_sample(name) for name in PLAIN_ENGLISH]
        if path is None
        else corpus.read_corpus([Path(path)])
    )
    return sequences.take_excerpts(documents)


def load_measurable_model(
    options: ModelOptions,
    talk: Talk,
    *,
    ablates: bool,
) -> "Model":
    """Load a model whose heads are to be measured.

    ablates: load it with the part that predicts next tokens, so that its loss without some heads
    can be measured. Raises ModelError, also for a model without such a part.
    """
    try:
        model = load_chosen_model(options, talk, writes=ablates)
    except ModelError as error:  # its advice is for the option --generate of other commands
        message = str(error).replace("leave --generate out", "leave --ablate out")
        raise ModelError(message) from error
    return require_losses(model) if ablates else model
