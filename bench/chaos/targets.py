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
# Each target's parts of the total time; strangers reach the server and the protocols.
SHARES = {"wire": 6}
