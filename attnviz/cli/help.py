"""`attnviz help`."""

import click

from attnviz.cli.options import TOPICS
from attnviz.cli.parameters import SectionedCommand
from attnviz.errors import UsageError


@click.command()
@click.argument("topic", required=False)
@click.pass_context
def command(ctx: click.Context, topic: str | None) -> None:
    """Explain the options that many commands share: figures, models; or a command.

    \b
    Examples:
      attnviz help
      attnviz help figures
      attnviz help models
    """
    from attnviz.cli.main import COMMANDS, main

    if topic is None:
        click.echo(describe_topics(ctx))
    elif topic in TOPICS:
        click.echo(explain_topic(topic, ctx))
    elif topic in COMMANDS:
        chosen = main.get_command(ctx, topic)
        assert chosen is not None
        with click.Context(chosen, parent=ctx.parent, info_name=topic) as context:
            click.echo(chosen.get_help(context))
    else:
        known = ", ".join((*TOPICS, *COMMANDS))
        raise UsageError(f"there is no help on {topic!r}: one of {known}")


def describe_topics(ctx: click.Context) -> str:
    """Write the list of the topics of `attnviz help`, each with a line on what it is about."""
    formatter = ctx.make_formatter()
    topics = [(f"attnviz help {name}", about) for name, (about, _) in TOPICS.items()]
    formatter.write_dl([*topics, ("attnviz help COMMAND", "The help of a command.")])
    return formatter.getvalue().rstrip("\n")


def explain_topic(topic: str, ctx: click.Context) -> str:
    """Write the text of `attnviz help TOPIC`: what the topic is about, and its options."""
    about, add_options = TOPICS[topic]

    def run(**_: object) -> None:
        """Do nothing: this makes a command that is needed for its options only."""

    command = click.command(cls=SectionedCommand)(add_options(run))
    options = [option for option in command.params if isinstance(option, click.Option)]
    records = [option.get_help_record(ctx) for option in options]
    formatter = ctx.make_formatter()
    formatter.write_text(about)
    formatter.write_paragraph()
    formatter.write_dl([record for record in records if record])
    return formatter.getvalue().rstrip("\n")
