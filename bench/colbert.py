"""Train a ColBERT head on all-MiniLM-L6-v2, serve it, and judge it beside the encoder's dense vectors.

    python -m bench.colbert [--folder FOLDER]

Texts are Debian's package descriptions: each one-line summary is a query, and should find its description.
The backbone stays as it is, so every text passes through it once, and only the layer that makes a vector of
each token's state is trained: it begins as the main axes of the states, and learns to tell a query's document
from those that the dense vectors find nearest (see `train`). The encoder is written as a folder of PyLate,
exported, and served beside its parent. The queries and documents that judge took no part in training.

nDCG@10 by each form of the vectors, and the bytes that an index would take, go to the terminal and to
bench/history/colbert.jsonl. docs/outputs.md says how to use such an encoder.
"""

import argparse
import json
import shutil
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

import trimtab
from bench import data, encoders, processes, report
from trimtab.values.multi_vector import MultiVectors, maxsim
from trimtab_export.export import export
from trimtab_export.source import Settings

WORK = processes.ROOT / "bench" / ".data" / "colbert"
DENSE, COLBERT = "all-minilm-l6-v2", "colbert"
WIDTH = 128
QUERY_TOKENS, DOCUMENT_TOKENS = 32, 128
TRAIN, DOCUMENTS, QUERIES = 4000, 2000, 1000
STEPS, BATCH, HARD, NEAREST = 400, 32, 3, 30
TEMPERATURE, RATE = 0.03, 1e-3
CUT = 10
# What is asked of the server, by the words of the table.
FORMS: dict[str, dict[str, Any]] = {
    "float32": {},
    "int8": {"dtype": "int8"},
    "bits": {"dtype": "ubinary"},
    "32 vectors, int8": {"max_vectors": 32, "dtype": "int8"},
}


@dataclass(frozen=True, slots=True)
class States:
    """The token states of texts, one text after another, float32 (tokens, hidden); which tokens give a
    vector, and where texts begin."""

    rows: torch.Tensor
    gives: torch.Tensor
    offsets: list[int]

    def of(self, text: int) -> torch.Tensor:
        """The states of a text's tokens that give a vector."""
        part = slice(self.offsets[text], self.offsets[text + 1])
        return self.rows[part][self.gives[part]]

    @property
    def pooled(self) -> torch.Tensor:
        """The dense vectors of the parent: the mean of all states, scaled to length 1."""
        ends = zip(self.offsets, self.offsets[1:], strict=False)
        return normalize(torch.stack([self.rows[start:end].mean(0) for start, end in ends]), dim=1)


def states(model: Any, texts: Sequence[str], most: int, skipped: set[int]) -> States:
    """The backbone's states of texts that are cut to so many tokens."""
    tokenizer, backbone = model.tokenizer, model[0].auto_model
    ids = [tokenizer(text, truncation=True, max_length=most)["input_ids"] for text in texts]
    found: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    with torch.no_grad():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            given = pad_sequence([torch.tensor(ids[text]) for text in part], batch_first=True)
            lengths = torch.tensor([len(ids[text]) for text in part])
            mask = (torch.arange(given.shape[1]) < lengths[:, None]).long()
            states = backbone(input_ids=given, attention_mask=mask).last_hidden_state
            for row, text in enumerate(part):
                found[text] = states[row, : lengths[row]].clone()
    gives = torch.tensor([each not in skipped for text in ids for each in text])
    return States(torch.cat(found), gives, [0, *np.cumsum([len(text) for text in ids]).tolist()])


def train(queries: States, documents: States) -> torch.Tensor:
    """The layer (WIDTH, hidden) that makes a vector of a token's state.

    Each query is scored with its own document and, of each query in the batch, HARD of the NEAREST others by
    the dense vectors; the loss is the cross entropy of its own. A score is the mean over the query's tokens
    of their largest cosine.
    """
    near = queries.pooled @ documents.pooled.T
    near.fill_diagonal_(-1)
    hard = near.topk(NEAREST).indices
    axes = torch.linalg.svd(torch.cat([queries.rows, documents.rows[::7]]), full_matrices=False).Vh
    layer = torch.nn.Parameter(axes[:WIDTH].clone())
    optimizer = torch.optim.AdamW([layer], lr=RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    chance = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        asked = torch.randperm(len(hard), generator=chance)[:BATCH]
        others = [hard[row, torch.randperm(NEAREST, generator=chance)[:HARD]] for row in asked]
        loss = _loss(layer, queries, documents, asked, torch.cat([asked, *others]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"  step {step + 1} of {STEPS}: loss {loss.item():.3f}", flush=True)
    return layer.detach()


def _loss(
    layer: torch.Tensor, queries: States, documents: States, asked: torch.Tensor, scored: torch.Tensor
) -> torch.Tensor:
    """The first of the scored documents belong to the queries asked, in this order."""
    questions = [queries.of(int(row)) for row in asked]
    answers = [documents.of(int(row)) for row in scored]
    rows = normalize(pad_sequence(answers, batch_first=True) @ layer.T, dim=2)
    lengths = torch.tensor([len(each) for each in answers])
    padding = torch.arange(rows.shape[1]) >= lengths[:, None]
    near = torch.einsum("qw,dlw->qdl", normalize(torch.cat(questions) @ layer.T, dim=1), rows)
    best = near.masked_fill(padding, -1.0).amax(2)
    counts = torch.tensor([len(each) for each in questions])
    owners = torch.repeat_interleave(torch.arange(len(asked)), counts)
    scores = torch.zeros(len(asked), len(scored)).index_add(0, owners, best) / counts[:, None]
    return cross_entropy(scores / TEMPERATURE, torch.arange(len(asked)))


def write(folder: Path, parent: Path, layer: torch.Tensor) -> None:
    """The encoder as PyLate keeps it: the parent's backbone, and the layer."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in parent.iterdir():
        if path.is_file() and path.suffix in (".json", ".safetensors", ".txt"):
            shutil.copyfile(path, folder / path.name)
    dense = folder / "1_Dense"
    dense.mkdir()
    save_file({"linear.weight": layer.contiguous()}, dense / "model.safetensors")
    shape = {"in_features": layer.shape[1], "out_features": layer.shape[0], "bias": False}
    activation = {"activation_function": "torch.nn.modules.linear.Identity", "use_residual": False}
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ]
    reads = {
        "similarity_fn_name": "MaxSim",
        # The backbone was trained without markers and filling, and stays as it is.
        "query_prefix": "",
        "document_prefix": "",
        "do_query_expansion": False,
        "query_length": QUERY_TOKENS,
        "document_length": DOCUMENT_TOKENS,
        "skiplist_words": list(string.punctuation),
    }
    for path, content in (
        (dense / "config.json", shape | activation),
        (folder / "modules.json", modules),
        (folder / "config_sentence_transformers.json", reads),
    ):
        path.write_text(json.dumps(content, indent=2))


def ndcg(scores: NDArray[np.float32]) -> float:
    """nDCG@10 where document i alone is right for query i."""
    own = scores[np.arange(len(scores)), np.arange(len(scores))]
    ranks = (scores > own[:, None]).sum(axis=1)
    return float(np.where(ranks < CUT, 1 / np.log2(ranks + 2.0), 0.0).mean())


def judged(url: str, queries: list[str], documents: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """nDCG@10 and the bytes of a document, by dense vectors, then by each form of multi-vectors."""
    with trimtab.Client(url, timeout=1800) as client:
        vectors = client.embed(documents, encoder=DENSE)
        near = client.embed(queries, encoder=DENSE) @ vectors.T
        yield "dense", {"ndcg": ndcg(near), "bytes": vectors.nbytes / len(documents)}
        for name, form in FORMS.items():
            asked: dict[str, Any] = {each: value for each, value in form.items() if each != "max_vectors"}
            query = _embedded(client, queries, "query", asked)
            index = _embedded(client, documents, "passage", form)
            scores = np.stack([maxsim(query.only(row), index) for row in range(len(query))])
            yield f"ColBERT, {name}", {"ndcg": ndcg(scores), "bytes": index.vectors.nbytes / len(documents)}


def _embedded(client: trimtab.Client, texts: list[str], role: Any, form: dict[str, Any]) -> MultiVectors:
    found = client.embed_outputs(texts, ["multi_vector"], encoder=COLBERT, role=role, **form)["multi_vector"]
    assert isinstance(found, MultiVectors)
    return found


def main() -> None:
    """Train, export, serve, judge, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=WORK / "source", help="where the encoder is written")
    options = parser.parse_args()
    torch.manual_seed(0)
    parent, examples = encoders.source(encoders.L6), data.examples()
    model = SentenceTransformer(str(parent), device="cpu").eval()
    skipped = set(model.tokenizer.convert_tokens_to_ids(list(string.punctuation)))
    begun = time.monotonic()
    learnt = examples[:TRAIN]
    print(f"training on {TRAIN} queries and documents", flush=True)
    layer = train(
        states(model, [each.query for each in learnt], QUERY_TOKENS, set()),
        states(model, [each.document for each in learnt], DOCUMENT_TOKENS, skipped),
    )
    seconds = time.monotonic() - begun
    write(options.folder, parent, layer)
    repository = WORK / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    for name, source in ((DENSE, parent), (COLBERT, options.folder)):
        export(Settings(str(source)), name, repository)
    judges = examples[-DOCUMENTS:]
    queries, documents = [each.query for each in judges[:QUERIES]], [each.document for each in judges]
    found = {}
    with processes.trimtab(repository, 0) as server:
        for name, figures in judged(server.url, queries, documents):
            found[name] = figures
            print(
                f"{name:<26} nDCG@10 {figures['ndcg']:.4f}  {figures['bytes']:8.0f} bytes a document",
                flush=True,
            )
    report.append(
        "colbert", train_seconds=round(seconds), queries=QUERIES, documents=DOCUMENTS, results=found
    )


if __name__ == "__main__":
    main()
