"""What minutes of healing buy: how much quality a cut encoder keeps over kinds of text it never saw.

    python -m bench.healing e5-small --layers 0,1,3,4,6,7,9,10,11 --millions 2

It trains as an export does, on the available kinds of text for training (`trimtab export --list-texts`), in
float32 and with torch's default threads. After each eighth of the tokens it is judged over the kinds for
choosing and judging, and over descriptions of Debian's packages (bench/data.py); the minutes do not include
this. Results are kept in bench/history/healing.jsonl.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bench import data, encoders, report
from trimtab_export.load import load
from trimtab_export.passes import anatomy, heal, progress
from trimtab_export.passes.prune import prune
from trimtab_export.passes.student import Student
from trimtab_export.source import Settings
from trimtab_export.steps import quiet
from trimtab_export.texts.gather import gather
from trimtab_export.variants import retrieval
from trimtab_export.variants.make import MILLION, Workshop
from trimtab_export.variants.monitor import QUERIES, TrainingMonitor

LEAST_NDCG = 0.2  # of the encoder itself, below which there is nothing to keep
DEBIAN = 3000  # documents


def main() -> None:
    """Cut, heal, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder", choices=(encoders.L6, encoders.E5))
    parser.add_argument("--layers", required=True, help="the numbers of those that stay, with commas")
    parser.add_argument("--ffn", type=float, default=1.0, help="the share of neurons that stays (default: 1)")
    parser.add_argument("--millions", type=float, default=1.0, help="tokens to train on (default: 1)")
    parser.add_argument("--queries", type=int, default=QUERIES, help="of each kind (default: %(default)s)")
    options = parser.parse_args()
    layers = tuple(map(int, options.layers.split(",")))
    with quiet():
        source = load(Settings(str(encoders.source(options.encoder))))
    found = gather()
    kinds = [each.texts for each in found if each.domain.role == "train"]
    sets = {each.name: [pair[:2] for pair in each.pairs] for each in found if each.domain.role != "train"}
    sets["Debian"] = data.pairs()[-DEBIAN:]
    with TemporaryDirectory() as scratch:
        shop = Workshop(source, Path(), None, kinds, None, Path(scratch))
        teacher = Student(source.backbone, source.head)
        watches = {}
        for name, pairs in sets.items():
            held = retrieval.held_out(name, pairs, options.queries, 2 * options.queries)
            watch = TrainingMonitor(
                teacher, held, source, shop.collator, options.queries, 2 * options.queries
            )
            if watch.ndcg >= LEAST_NDCG:
                watches[name] = watch
        print({name: round(watch.ndcg, 3) for name, watch in watches.items()}, flush=True)
        kept: list[dict[str, float]] = []

        def look(student: Student) -> tuple[float, float]:
            shares = {name: watch(student) for name, watch in watches.items()}
            kept.append({name: round(ndcg, 4) for name, (ndcg, _) in shares.items()})
            print(kept[-1], flush=True)
            return min(ndcg for ndcg, _ in shares.values()), min(cosine for _, cosine in shares.values())

        student = teacher.copy()
        prune(student, shop.calibration, shop.repair, layers=layers, heads=1.0, ffn=options.ffn)
        targets = anatomy.targets(layers, len(anatomy.blocks(teacher.backbone)))
        lesson = heal.Lesson(teacher, shop.mix, targets, round(MILLION * options.millions), look)
        heal.heal(student, lesson, Path(scratch) / "healing", lambda text: print(text, flush=True))
        points = progress.curve(Path(scratch) / "healing")
    rows = [
        {"tokens": tokens, "seconds": seconds, "kept": shares, "worst": min(shares.values())}
        for tokens, seconds, shares in zip(
            [point.tokens for point in points], [point.seconds for point in points], kept, strict=True
        )
    ]  # fmt: skip
    report.append(
        "healing",
        encoder=options.encoder,
        layers=layers,
        ffn=options.ffn,
        threads=torch.get_num_threads(),
        rows=rows,
    )


if __name__ == "__main__":
    main()
