"""What is fuzzed, by name.

Each target gives seeds, from which the fuzzer begins, and says which errors are right answers to wrong input.
"""

from collections.abc import Callable
from pathlib import Path

from bench.chaos import fuzzed_files, fuzzed_messages, fuzzed_strings
from bench.chaos.fuzzed import FuzzTarget

TARGETS: dict[str, Callable[[Path], FuzzTarget]] = {
    "wire": fuzzed_messages.wire,
    "config": fuzzed_files.config,
    "manifest": fuzzed_files.manifest,
    "adapter": fuzzed_files.adapter,
    "tokens": fuzzed_strings.tokens,
    "addresses": fuzzed_strings.addresses,
    "signatures": fuzzed_files.signatures,
    "credentials": fuzzed_messages.credentials,
    "answers": fuzzed_messages.answers,
    "costs": fuzzed_files.costs,
}
# Of the time that there is, so many parts; the server and the protocols are what strangers reach.
SHARES = {"wire": 6}
