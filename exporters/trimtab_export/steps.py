"""Numbered steps with their durations on standard error, and silence from the libraries underneath."""

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Steps:
    """`with steps("converting to ONNX"):` prints `[3/7] converting to ONNX ... 2.2 s`.

    `with steps("...") as say:` may `say("the result")` before the seconds.
    """

    total: int
    done: int = field(default=0, init=False)

    @contextmanager
    def __call__(self, label: str) -> Iterator[Callable[[str], object]]:
        self.done += 1
        sys.stderr.write(f"[{self.done}/{self.total}] {label} ... ")
        sys.stderr.flush()
        started = time.monotonic()
        try:
            yield lambda text: sys.stderr.write(f"{text}, ")
        except BaseException:
            sys.stderr.write("\n")  # start a new line for the next output
            raise
        sys.stderr.write(f"{time.monotonic() - started:.1f} s\n")
        sys.stderr.flush()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings, and their log lines below ERROR, off the terminal.

    They set the levels of their loggers on import, so setting levels here would not help.
    """
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


def no_progress_bars() -> None:
    """Turn off the progress bars of the Hugging Face libraries, for this process."""
    import transformers.utils.logging
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
