"""`trimtab`: find the subcommands that the installed parts register, and run one."""

import argparse
import atexit
import importlib
import logging
import os
import sys
from contextlib import suppress
from importlib import metadata
from typing import NoReturn, Protocol, cast

from trimtab.errors import TrimtabError


class Command(Protocol):
    """A module registered under `trimtab.commands`. Importing it must be cheap."""

    __doc__: str | None
    SUMMARY: str
    EXTRA: str | None  # the extra that installs what the command needs; None: the base install suffices

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, options: argparse.Namespace) -> int:
        """Run the command, and return the exit status."""


def main(arguments: list[str] | None = None) -> int:
    """Run `trimtab` with these arguments (by default the process's) and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="trimtab",
        description="Serve text encoders over gRPC: export one to a bundle, serve it, embed with it.",
        epilog="`trimtab COMMAND --help` tells more of each.",
    )
    parser.add_argument("--version", action="version", version=f"trimtab {metadata.version('trimtab')}")
    choices = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands = find_commands()
    for name, command in commands.items():
        sub = choices.add_parser(
            name,
            help=command.SUMMARY,
            description=(command.__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
    options = parser.parse_args(arguments)
    command = commands[options.command]
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        return command.run(options)
    except TrimtabError as error:
        sys.stderr.write(f"trimtab {options.command}: {error}\n")
        return 1
    except ModuleNotFoundError as error:
        if command.EXTRA is None or (error.name or "").startswith("trimtab"):
            raise
        sys.stderr.write(
            f"trimtab {options.command} needs the package {error.name!r}: "
            f"pip install 'trimtab[{command.EXTRA}]'\n"
        )
        return 1
    except OSError as error:  # for example a full disk, or an unreadable file
        sys.stderr.write(f"trimtab {options.command}: {error}\n")
        try:
            sys.stdout.flush()
        except OSError:
            # Otherwise Python would fail again when it closes standard output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def find_commands() -> dict[str, Command]:
    """The commands by name, in order. A part whose modules are missing is skipped; the others still work."""
    commands: dict[str, Command] = {}
    for entry in sorted(metadata.entry_points(group="trimtab.commands"), key=lambda entry: entry.name):
        try:
            commands[entry.name] = cast(Command, importlib.import_module(entry.value))
        except ModuleNotFoundError as error:
            # Only the part itself may be missing; a missing dependency of it is an error to report.
            if error.name is None or not f"{entry.value}.".startswith(f"{error.name}."):
                raise
    return commands


def run() -> NoReturn:
    """Run `trimtab`, and end the process with its exit status.

    gRPC's threads cannot be stopped. If Python stops one of them while it shuts down, a lock inside gRPC may
    stay held, and gRPC waits for it forever when Python frees the channel. So nothing is freed: the process
    ends after it has written what it has to write, and has called what was registered with atexit.
    """
    status = main()
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None if it was closed at the start
        with suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    run()
