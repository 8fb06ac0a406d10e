"""Healing, on an encoder small enough to train in a second."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import torch

from trimtab.errors import ExportError
from trimtab_export import sentences
from trimtab_export.load import load
from trimtab_export.passes import anatomy, heal, progress
from trimtab_export.passes.curve import Point
from trimtab_export.passes.heal import Lesson, Look
from trimtab_export.passes.student import EarlyStudent, Student, traced
from trimtab_export.source import Settings, Source
from trimtab_export.steps import quiet
from trimtab_export.tokens import Collator
from trimtab_export.variants import make, mix, pace, retrieval
from trimtab_export.variants.monitor import TrainingMonitor

TEXTS = [text for text in sentences.load() if text.strip()]
TOKENS = 20_000


class Class:
    """An encoder, what it is to teach, and a student of half its layers."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.collator = Collator(source.tokenizer, 60)
        self.teacher = Student(source.backbone, source.head)
        self.batches = [self.collator(TEXTS[start : start + 16]) for start in range(0, len(TEXTS), 16)]
        self.mix = mix.Mix([TEXTS], source.prompts, self.collator, source.tokenizer)
        pairs = retrieval.held_out("sentences", retrieval.split(TEXTS * 3), 60, 100)
        self.watch = TrainingMonitor(self.teacher, pairs, source, self.collator)

    def student(self) -> Student:
        """Cut, and not repaired: there is much to learn."""
        cut = self.teacher.copy()
        anatomy.keep_layers(cut.backbone, (1,))
        return cut

    def lesson(self, **changes: Any) -> Lesson:
        given = {"teacher": self.teacher, "mix": self.mix, "targets": [2], "tokens": TOKENS, **changes}
        return Lesson(**given)

    def nearness(self, student: Student) -> float:
        with torch.no_grad():
            cosines = [
                torch.nn.functional.cosine_similarity(student(batch), self.teacher(batch))
                for batch in self.batches
            ]
        return float(torch.cat(cosines).mean())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heal, "RATE", 2e-3)  # small encoders learn faster
    monkeypatch.setattr(mix, "CHUNK", 64)
    monkeypatch.setattr(mix, "BATCH_TOKENS", 512)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Class:
    folder = tiny_encoders.sentence_transformers("bert", tmp_path_factory.mktemp("bert"))
    with quiet():
        return Class(load(Settings(str(folder), query_prompt="query: ", passage_prompt="passage: ")))


def weights(student: Student) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in student.backbone.parameters()]


def deaf(text: str) -> None:
    """Hears nothing of the progress."""


def test_a_student_comes_nearer_to_the_whole_encoder(school: Class, tmp_path: Path) -> None:
    student = school.student()
    before = school.nearness(student)
    heal.heal(student, school.lesson(), tmp_path / "p", deaf)
    assert school.nearness(student) > before + 0.3 * (1 - before)


def test_states_teach_more_than_vectors_alone(school: Class, tmp_path: Path) -> None:
    near = []
    for targets in ([2], None):
        student = school.student()
        heal.heal(student, school.lesson(targets=targets), tmp_path / str(targets), deaf)
        with torch.no_grad():
            far = [
                (traced(student, batch)[1][-1] - traced(school.teacher, batch)[1][-1]).square().mean()
                for batch in school.batches
            ]
        near.append(-float(torch.stack(far).mean()))
    assert near[0] > near[1]


def test_the_table_of_words_stays_as_it_is(school: Class, tmp_path: Path) -> None:
    student = school.student()
    before = student.backbone.embeddings.word_embeddings.weight.clone()
    heal.heal(student, school.lesson(tokens=1000), tmp_path / "p", deaf)
    assert torch.equal(student.backbone.embeddings.word_embeddings.weight, before)


def stopping(at: int) -> Callable[[str], None]:
    """Is killed at that line of progress."""
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        if len(told) == at:
            raise KeyboardInterrupt

    return tell


@pytest.mark.parametrize("at", [3, 30, 47])
def test_an_interrupted_training_ends_with_the_same_weights_and_curve(
    at: int, school: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(heal, "PATIENCE", 100)
    lesson = school.lesson(look=school.watch)
    straight, again = school.student(), school.student()
    heal.heal(straight, lesson, tmp_path / "straight", deaf)
    with pytest.raises(KeyboardInterrupt):
        heal.heal(school.student(), lesson, tmp_path / "stopped", stopping(at))
    heal.heal(again, lesson, tmp_path / "stopped", deaf)
    assert all(torch.equal(*pair) for pair in zip(weights(straight), weights(again), strict=True))
    curves = [
        [(point.tokens, point.ndcg, point.cosine) for point in progress.curve(tmp_path / name)]
        for name in ("straight", "stopped")
    ]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 1 + heal.LOOKS
    assert curves[0][0][0] == 0
    assert curves[0][-1][2] > curves[0][0][2]


def test_what_is_finished_is_not_trained_again(
    school: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, again = school.student(), school.student()
    heal.heal(trained, school.lesson(tokens=1000), tmp_path / "p", deaf)
    monkeypatch.setattr(heal, "_step", None)
    heal.heal(again, school.lesson(tokens=1000), tmp_path / "p", deaf)
    assert all(torch.equal(*pair) for pair in zip(weights(trained), weights(again), strict=True))


def looks(cosines: Sequence[float]) -> tuple[Look, list[list[torch.Tensor]]]:
    """Sees these, one after the other; and the weights that it saw."""
    seen: list[list[torch.Tensor]] = []

    def look(student: Student) -> tuple[float, float]:
        seen.append(weights(student))
        return 1.0, cosines[len(seen) - 1]

    return look, seen


def test_a_training_that_brings_nothing_more_ends_with_its_best_weights(
    school: Class, tmp_path: Path
) -> None:
    look, seen = looks([0.79, 0.5, 0.8, 0.7, 0.79, 0.8, 0.9, 0.9, 0.9])
    student = school.student()
    heal.heal(student, school.lesson(look=look), tmp_path / "p", deaf)
    assert len(seen) == 3 + heal.PATIENCE
    assert all(torch.equal(*pair) for pair in zip(weights(student), seen[2], strict=True))
    curve = progress.curve(tmp_path / "p")
    assert [point.cosine for point in curve] == [0.79, 0.5, 0.8, 0.7, 0.79, 0.8]
    assert curve[-1].tokens < TOKENS
    assert isinstance(curve[0], Point)


def test_a_training_that_gets_better_goes_on(school: Class, tmp_path: Path) -> None:
    look, seen = looks([0.9, *(0.1 * number for number in range(heal.LOOKS))])
    student = school.student()
    before = weights(student)
    heal.heal(student, school.lesson(look=look), tmp_path / "p", deaf)
    assert len(seen) == 1 + heal.LOOKS
    assert all(torch.equal(*pair) for pair in zip(weights(student), before, strict=True)), (
        "never as good again"
    )


def test_an_exit_is_healed_with_the_head_behind_it(
    school: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heal, "FITTED_RATE", heal.RATE)  # the head is none that was fitted
    backbone = school.teacher.copy().backbone
    anatomy.keep_layers(backbone, (0,))
    rng = np.random.default_rng(0)
    random = rng.normal(size=(32, 2 * 32)).astype(np.float32), np.zeros(32, np.float32)
    early = EarlyStudent(backbone, school.source.head, random)
    before = school.nearness(early)
    heal.heal(early, school.lesson(targets=None), tmp_path / "p", deaf)
    assert school.nearness(early) > before + 0.05
    weight, bias = early.fitted
    assert not np.array_equal(weight, random[0])
    assert not np.array_equal(bias, random[1])


def test_weights_that_are_nan_stop_the_healing(school: Class, tmp_path: Path) -> None:
    student = school.student()
    with torch.no_grad():
        anatomy.blocks(student.backbone)[0].narrow.bias[0] = float("nan")
    with pytest.raises(ExportError, match="healing: the loss is nan at step 1"):
        heal.heal(student, school.lesson(), tmp_path / "p", deaf)


def test_minutes_become_tokens_by_the_speed_of_the_machine_once(
    school: Class, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = make.Workshop(school.source, tmp_path, None, [TEXTS], None, tmp_path)
    whole = pace.millions(60, 2, 1.0, shop)
    assert whole > 0
    assert float(f"{whole:.2g}") == whole
    monkeypatch.setattr(heal, "trial", None)
    assert pace.millions(60, 2, 1.0, shop) == whole, "an interrupted search makes the same variants"
    monkeypatch.setattr(pace, "_seconds", lambda shop: 1e-3)
    assert pace.millions(100, 2, 1.0, shop) == 6.0
    assert pace.millions(100, 1, 1.0, shop) == 9.6, "2 layers forward, 1 forward and back, not 2"
    assert pace.millions(100, 2, 0.5, shop) == 8.0, "a third of the work is attention"
