"""The command group: knows every verb by name and loads one when it is called."""

from __future__ import annotations

from importlib import import_module

import click

VERBS = {
    "demo": "Talk to the small model inside the package. Start here.",
    "generate": "Answer one prompt.",
    "chat": "A conversation in the terminal.",
    "serve": "A server for clients of OpenAI's and Anthropic's interfaces.",
    "info": "A model's shapes, and what it needs of memory and disk.",
    "convert": "Pack a checkpoint for fast reading; quantise it if asked.",
    "verify": "Check every checksum of a model.",
    "eval": "What fewer experts or bits cost: perplexity, KL, valid tool calls.",
    "bench": "How fast a model runs here, and other engines beside it.",
    "selftest": "Check every computation of this machine's devices.",
    "doctor": "What this machine can run, and the next command to type.",
}

EPILOG = """\b
Examples:
  flashmoe demo
  flashmoe doctor
  flashmoe info ~/models/qwen3.6-35b-a3b-4bit
  flashmoe chat ~/models/qwen3.6-35b-a3b-4bit --memory 6GB
  flashmoe convert Qwen/Qwen3.6-35B-A3B ~/models/qwen3.6-35b --bits 4

`flashmoe VERB --help` has more of them. MODEL is a directory, a repository of the Hugging Face
hub, or the word demo.
"""


class LazyGroup(click.Group):
    """Loads a verb's file when the verb is called; the list of verbs needs none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of :data:`VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb.

        Args:
            ctx: click's state.
            cmd_name: The verb.
        """
        if cmd_name not in VERBS:
            return None
        command: click.Command = import_module(f"flashmoe.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs.

        Args:
            ctx: click's state.
            formatter: Where it goes.
        """
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="flashmoe", message="%(prog)s %(version)s")
@click.pass_context
def app(ctx: click.Context) -> int:
    """Run huge Mixture-of-Experts language models on this machine.

    Experts stay on the disk and are read when the router picks them, so a model may be far larger
    than memory.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        ctx.exit(2)
    return 0
