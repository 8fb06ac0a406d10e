"""`trimtab`: finds the subcommands that the installed parts register, and runs one."""

import argparse
import importlib
import logging
import sys
from importlib import metadata
from typing import Protocol

from trimtab.errors import TrimtabError


class Command(Protocol):
    """What a module registered under `trimtab.commands` offers. Importing it must be cheap."""

    SUMMARY: str
    EXTRA: str | None  # the extra that installs what the command needs; None: the base has it all

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run `trimtab` with these arguments (those of the process by default) and return its exit status."""
    commands = {entry.name: entry.value for entry in metadata.entry_points(group="trimtab.commands")}
    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="Serve text encoders over gRPC: export one to a bundle, serve it, embed with it.",
        epilog="`trimtab COMMAND --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"trimtab {metadata.version('trimtab')}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules: dict[str, Command] = {}
    for name in sorted(commands):
        command: Command = importlib.import_module(commands[name])  # type: ignore[assignment]
        modules[name] = command
        sub = choices.add_parser(
            name,
            help=command.SUMMARY,
            description=(sys.modules[commands[name]].__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
    options = parser.parse_args(arguments)
    command = modules[options.command]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        return command.run(options)
    except TrimtabError as error:
        print(f"trimtab {options.command}: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if command.EXTRA is None or (error.name or "").startswith("trimtab"):
            raise
        print(
            f"trimtab {options.command} needs the package {error.name!r}: "
            f"pip install 'trimtab[{command.EXTRA}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
