"""The stubs in client/ are those of protos/, and the house is as import-linter wants it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_stubs_are_up_to_date(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "protos" / "generate.py"), str(tmp_path)], check=True, timeout=240
    )
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    assert generated
    for path, text in generated.items():
        assert (ROOT / "client" / path).read_text() == text, f"{path} is stale: run `make protos`"
