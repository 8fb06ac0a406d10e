"""A toy kind of input and a toy kind of output, each one file for the client, the server and the exporter.

`installed` makes a folder that is to Python what an installed package with their entry points is.
"""

from pathlib import Path

ENTRY_POINTS = """\
[trimtab.inputs]
letters = tests.toys.letters_client:Letters
[trimtab.outputs]
counts = tests.toys.counts_client:Counts
[trimtab_server.inputs]
letters = tests.toys.letters_server:LettersReader
[trimtab_server.outputs]
counts = tests.toys.counts_server:COUNTS
[trimtab_export.inputs]
letters = tests.toys.letters_exporter:LETTERS
[trimtab_export.outputs]
counts = tests.toys.counts_exporter:COUNTS
"""


def installed(folder: Path) -> Path:
    """A folder for sys.path, or PYTHONPATH."""
    metadata = folder / "trimtab_toys-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trimtab-toys\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder
