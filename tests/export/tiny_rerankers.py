"""Cross-encoders, very small and seeded, as folders of sentence-transformers or of transformers alone."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tiny_encoders
import torch
from numpy.typing import NDArray
from tokenizers import processors

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from sentence_transformers import CrossEncoder

CLASSES = {
    "bert": "BertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "mpnet": "MPNetForSequenceClassification",
}
# Sharp logits, but not so sharp that a sigmoid is 0 or 1 everywhere.
SPREAD = 0.7
PAIRED = ("xlm-roberta", "mpnet")
LENGTHS = {"roberta": 128, "xlm-roberta": 128, "mpnet": 128}


def huggingface(architecture: str, folder: Path, labels: int = 1, **config: Any) -> Path:
    """A Hugging Face folder: config, safetensors, fast tokenizer."""
    torch.manual_seed(11)
    made, _, tokenizer = tiny_encoders._parts(architecture)
    if architecture == "bert":
        made.type_vocab_size = 2
    made.num_labels = labels
    for name, value in config.items():
        setattr(made, name, value)
    if architecture in PAIRED:  # as the real ones have it
        ends = [
            ("<s>", tokenizer.convert_tokens_to_ids("<s>")),
            ("</s>", tokenizer.convert_tokens_to_ids("</s>")),
        ]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=ends
        )
    tokenizer.model_max_length = LENGTHS.get(architecture, 130)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, CLASSES[architecture])(made).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("classifier") and name.endswith("weight"):
                parameter.mul_(SPREAD)
            if name.startswith("classifier") and name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cross_encoder(
    architecture: str, folder: Path, labels: int = 1, activation: Any = None, **options: Any
) -> Path:
    """A sentence-transformers folder, as CrossEncoder itself writes it."""
    plain = huggingface(architecture, folder / "hf", labels, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CrossEncoder(str(plain), device="cpu", activation_fn=activation)
        model.save_pretrained(str(folder / "st"), create_model_card=False)
    return folder / "st"


def predict(
    folder: Path, pairs: list[tuple[str, str]], activation: Any = None, max_length: int | None = None
) -> NDArray[np.float32]:
    """What the library itself answers, float32 (n, labels)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = CrossEncoder(str(folder), device="cpu", max_length=max_length)
        scores: NDArray[np.float32] = model.predict(pairs, activation_fn=activation, show_progress_bar=False)
    return scores.reshape(len(pairs), -1)
