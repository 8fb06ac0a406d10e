"""Sources of torch weights: a sentence-transformers folder, a Hugging Face folder, an id of the hub.

Weights are read by the libraries only, safetensors before anything else; code of the source is never run.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize as NormalizeModule
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

from trimtab.bundle import SpaceParts
from trimtab.errors import ExportError
from trimtab_export import tokens
from trimtab_export.load import declared, structure, weights
from trimtab_export.runtime import first_line
from trimtab_export.source import Head, Normalize, Settings, Source

REFERENCE_BATCH = 8
NO_CODE = {"trust_remote_code": False}
# The names of Trimtab's pooling modes in sentence-transformers.
MODES = {pooling: mode for mode, pooling in declared.POOLINGS.items()}


def load(settings: Settings) -> Source:
    """Read the source; its `embed` is SentenceTransformer.encode."""
    source = settings.source
    try:
        says = declared.read(source)
        if says is None:
            model, head = _bare(settings)
        else:
            head = declared.head(source, says)
            declared.check_not_overridden(source, settings, head)
            model = SentenceTransformer(source, device="cpu", trust_remote_code=False)
        _check_weights(source, says.transformer_folder if says else "", model[0].auto_model)
    except ExportError:
        raise
    except Exception as error:  # whatever the libraries raise, the user gets its first line
        raise ExportError(f"{source} cannot be loaded: {first_line(error)}") from error
    model = model.eval().float()
    _check_text_only(source, model[0])

    tokenizer = tokens.from_transformers(model.tokenizer)
    backbone = model[0].auto_model
    max_tokens = declared.max_tokens(settings.max_tokens, [model.max_seq_length], positions(backbone))
    model.max_seq_length = max_tokens  # of the reference, too
    config = says.config if says else {}

    def embed(texts: list[str], prompt: str) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = model.encode(
                texts, prompt=prompt, batch_size=REFERENCE_BATCH, show_progress_bar=False
            )
        except Exception as error:
            raise ExportError(
                f"{source} itself fails on the texts of the comparison: {first_line(error)}. "
                "Do its tokenizer and its weights belong together?"
            ) from error
        return vectors

    return Source(
        backbone=backbone,
        head=head,
        tokenizer=tokenizer,
        prompts=declared.prompts(config, settings),
        max_tokens=max_tokens,
        dimensions=int(model.get_embedding_dimension()),
        similarity=declared.similarity(config),
        normalized=head.normalizes,
        space_parts=SpaceParts(
            weights_sha256=weights.of_torch(backbone, head), structure=structure.of_torch(backbone)
        ),
        architecture=(backbone.config.architectures or [type(backbone).__name__])[0],
        embed=embed,
    )


def _bare(settings: Settings) -> tuple[Any, Head]:
    """A Hugging Face folder says nothing about pooling: the user does."""
    if settings.pooling is None:
        raise ExportError(
            f"{settings.source} does not declare how token states become one vector (it has no "
            "modules.json): give --pooling mean, cls, last or max, as its authors say, and --normalize where "
            "they do that"
        )
    transformer = Transformer(
        settings.source,
        model_kwargs=dict(NO_CODE),
        processor_kwargs=dict(NO_CODE),
        config_kwargs=dict(NO_CODE),
    )
    modules = [transformer, PoolingModule(transformer.get_embedding_dimension(), MODES[settings.pooling])]
    if settings.normalize:
        modules.append(NormalizeModule())
    head = Head(settings.pooling, (Normalize(),) if settings.normalize else ())
    return SentenceTransformer(modules=modules, device="cpu"), head


def _check_weights(source: str, folder: str, backbone: Any) -> None:
    """Refuse a checkpoint that lacks weights: transformers fills them with random numbers, and only warns."""
    _, info = type(backbone).from_pretrained(
        source, subfolder=folder, config=backbone.config, output_loading_info=True, **NO_CODE
    )
    missing = sorted(name for name in info["missing_keys"] if not weights.is_idle(name))
    if missing:
        raise ExportError(
            f"the checkpoint of {source} lacks {len(missing)} weights of {type(backbone).__name__}, "
            f"the first of them {missing[0]}: they would be random. Is it of another architecture?"
        )


def _check_text_only(source: str, transformer: Any) -> None:
    modalities = [str(modality) for modality in transformer.modalities]
    if modalities != ["text"] or transformer.module_output_name != "token_embeddings":
        raise ExportError(
            f"{source} takes {', '.join(modalities)} and gives {transformer.module_output_name}; "
            "an encoder that can be exported takes text and gives token_embeddings"
        )
    if transformer.processing_kwargs:
        raise ExportError(
            f"{source} sets processing_kwargs ({', '.join(transformer.processing_kwargs)}) for "
            "its tokenizer, which a tokenizer.json cannot hold"
        )
    if transformer.config.is_encoder_decoder:
        raise ExportError(f"{source} has a decoder; an encoder that can be exported has none")


def positions(backbone: Any) -> int | None:
    """The most tokens that the backbone has positions for; None where its positions have no end.

    Models of RoBERTa's family number positions from `padding_idx` + 1 on, so that many fewer are of use.
    """
    limit = getattr(backbone.config, "max_position_embeddings", None)
    if limit is None or limit <= 0:  # XLNet says -1
        return None
    for module in backbone.modules():
        table = getattr(module, "position_embeddings", None)
        offset = getattr(module, "padding_idx", None)
        if isinstance(table, torch.nn.Embedding) and isinstance(offset, int):
            return int(limit) - offset - 1
    return int(limit)
