"""Masked language models, very small and seeded, and SparseEncoders of them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import tiny_encoders
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

CLASSES = {
    "bert": "BertForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "mpnet": "MPNetForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
}


def masked(architecture: str, folder: Path, *, seed: int = 7, **config: Any) -> Path:
    """A Hugging Face folder of a masked language model, whose words have a bias of their own."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        configuration, _, tokenizer = tiny_encoders._parts(architecture)
    configuration.update(config)
    model = getattr(transformers, CLASSES[architecture])(configuration).eval()
    bias = model.get_output_embeddings().bias
    with torch.no_grad():
        bias.normal_(-3.0, 2.0)  # so that few words have a weight
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def splade(source: Path, folder: Path, **pooling: Any) -> Path:
    """A SparseEncoder folder of a masked language model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(str(source), transformer_task="fill-mask")
        model = SparseEncoder(modules=[transformer, SpladePooling(**pooling)], device="cpu")
        model.save(str(folder), create_model_card=False)
    return folder


def routed(source: Path, folder: Path, *, seed: int = 3) -> Path:
    """A SparseEncoder folder whose queries are read by a table."""
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = Transformer(str(source), transformer_task="fill-mask")
        table = torch.rand(transformer.auto_model.config.vocab_size, generator=generator)
        table[::3] = 0
        queries = SparseStaticEmbedding(tokenizer=transformer.tokenizer, weight=table, frozen=True)
        documents = [transformer, SpladePooling(activation_function="log1p_relu")]
        router = Router.for_query_document(query_modules=[queries], document_modules=documents)
        SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu").save(
            str(folder), create_model_card=False
        )
    return folder


def library(folder: Path, texts: list[str], **options: Any) -> np.ndarray:
    """What the library itself answers: float32 (n, vocabulary)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = SparseEncoder(str(folder), device="cpu")
        if model.max_seq_length is None or model.max_seq_length > 512:
            model.max_seq_length = 128
        found: np.ndarray = model.encode(
            texts, show_progress_bar=False, convert_to_sparse_tensor=False, **options
        ).numpy()
    return found
