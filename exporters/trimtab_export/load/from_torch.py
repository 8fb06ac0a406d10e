"""Sources with torch weights: a sentence-transformers folder, a Hugging Face folder, a hub id.

Only the libraries read weights, and only safetensors; the source's code is never run.
"""

from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from trimtab.artifacts.manifest import SpaceParts
from trimtab.errors import ExportError
from trimtab_export import tokens
from trimtab_export.kinds import dense
from trimtab_export.load import declared, library, refused, structure, weights
from trimtab_export.source import Settings, Source

NO_CODE = {"trust_remote_code": False}
NO_PICKLE = {**NO_CODE, "use_safetensors": True}


def load(settings: Settings, says: declared.Declared | None) -> Source:
    """Read the source, to be compared with SentenceTransformer.encode."""
    source = settings.source
    refused.check_weights(source, says)
    if says is None:
        model = _bare(settings)
    else:
        model = SentenceTransformer(
            source, device="cpu", trust_remote_code=False, model_kwargs=dict(NO_PICKLE)
        )
    model.eval()
    library.check(source, model, gives="token_embeddings")
    backbone = model[0].auto_model
    check_weights(source, says.transformer_folder if says else "", backbone)
    head = library.head(model)
    if says is not None:
        declared.check_not_overridden(source, settings, head)
    tokenizer = tokens.from_transformers(model.tokenizer)
    max_tokens = library.max_tokens(source, settings.max_tokens, model, positions(backbone))
    prompts, notes = library.prompts(model, settings)
    embed = library.embed_with(source, model)
    vectors = dense.output(
        head,
        embed,
        prompts,
        dimensions=embed(["one text"], "").shape[1],
        similarity=declared.similarity(says.config if says else {}),
        normalized=head.normalizes,
        space_parts=SpaceParts(
            weights_sha256=weights.of_torch(backbone, head), structure=structure.of_torch(backbone)
        ),
    )
    return Source(
        backbone=backbone,
        outputs=(vectors,),
        tokenizer=tokenizer,
        prompts=prompts,
        max_tokens=max_tokens,
        architecture=(backbone.config.architectures or [type(backbone).__name__])[0],
        notes=notes,
    )


def _bare(settings: Settings) -> Any:
    """The model of a Hugging Face folder, with the head that the user asks for."""
    pooling = library.given_pooling(settings.source, settings)
    transformer = Transformer(
        settings.source,
        model_kwargs=dict(NO_PICKLE),
        processor_kwargs=dict(NO_CODE),
        config_kwargs=dict(NO_CODE),
    )
    behind = library.given_head(pooling, settings, transformer.get_embedding_dimension())
    return SentenceTransformer(modules=[transformer, *behind], device="cpu")


def check_weights(source: str, folder: str, backbone: Any) -> None:
    """Refuse a checkpoint that lacks weights: transformers fills them with random numbers, and only warns."""
    _, info = type(backbone).from_pretrained(
        source, subfolder=folder, config=backbone.config, output_loading_info=True, **NO_PICKLE
    )
    missing = sorted(name for name in info["missing_keys"] if not weights.is_idle(name))
    if missing:
        raise ExportError(
            f"the checkpoint of {source} lacks {len(missing)} weights of {type(backbone).__name__}, "
            f"first {missing[0]}: they would be random. Is it of another architecture?"
        )


def positions(backbone: Any) -> int | None:
    """The most tokens that the backbone has positions for; None if its positions are unlimited.

    RoBERTa-like models number positions from `padding_idx` + 1, so they can use that many fewer.
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
