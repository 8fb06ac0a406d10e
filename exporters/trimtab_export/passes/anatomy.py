"""Locates the parts of an encoder that the passes cut: its layers, their attention and feed-forward blocks.

Knows BERT, RoBERTa, XLM-R, MPNet and DistilBERT as transformers implements them. Others are refused by name.
"""

from dataclasses import dataclass
from typing import Any

from trimtab.errors import ExportError
from trimtab_export.source import Graph

BERTS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
KNOWN = (*BERTS, "mpnet", "distilbert")


@dataclass(frozen=True)
class TransformerBlock:
    """One layer: `context` projects the concatenated heads; `widen` and `narrow` are the feed-forward
    block."""

    module: Any
    attention: Any  # has transformers' prune_heads
    heads: int
    context: Any
    widen: Any
    narrow: Any


def architecture(backbone: Any) -> str:
    """The model type of a torch backbone that the passes know; ExportError for others, and for graphs."""
    if isinstance(backbone, Graph):
        raise ExportError(
            "pruning, healing and exits work on torch weights, and the source is an ONNX graph: give the "
            "encoder's own folder, or ask for int8, int8-weights, int4-weights or fp16 alone"
        )
    kind = str(getattr(backbone.config, "model_type", "unknown"))
    if kind not in KNOWN:
        raise ExportError(
            f"pruning, healing and exits do not know the architecture {kind}; they know {', '.join(KNOWN)}"
        )
    return kind


def stack(backbone: Any) -> Any:
    """The torch.nn.ModuleList of the layers."""
    return backbone.transformer.layer if architecture(backbone) == "distilbert" else backbone.encoder.layer


def blocks(backbone: Any) -> list[TransformerBlock]:
    """The layers, the first one first."""
    kind = architecture(backbone)
    return [_block(kind, layer) for layer in stack(backbone)]


def last_norm(block: TransformerBlock, kind: str) -> Any:
    """The layer norm at the end of a layer."""
    return block.module.output_layer_norm if kind == "distilbert" else block.module.output.LayerNorm


def put_last_norm(block: TransformerBlock, kind: str, norm: Any) -> None:
    """Replace the layer norm at the end of a layer."""
    if kind == "distilbert":
        block.module.output_layer_norm = norm
    else:
        block.module.output.LayerNorm = norm


def check_heads(backbone: Any) -> None:
    """Refuse an architecture whose layers must all have the same number of heads: heads and shrp remove
    some."""
    if architecture(backbone) == "mpnet":
        raise ExportError(
            "mpnet adds one position bias to the heads of all its layers, so that none of them can be taken "
            "out: leave heads and shrp out, and prune neurons (ffn) or layers"
        )


def keep_layers(backbone: Any, numbers: tuple[int, ...]) -> None:
    """Keep only the layers with these numbers, counted from 0."""
    layers = stack(backbone)
    if not numbers or sorted(set(numbers)) != list(numbers) or numbers[-1] >= len(layers) or numbers[0] < 0:
        raise ExportError(
            f"layers = {list(numbers)}: give ascending numbers of the encoder's layers, "
            f"0 to {len(layers) - 1}"
        )
    kept = [layers[number] for number in numbers]
    del layers[:]
    layers.extend(kept)
    key = "n_layers" if hasattr(backbone.config, "n_layers") else "num_hidden_layers"
    setattr(backbone.config, key, len(kept))
    if hasattr(backbone, "transformer"):  # DistilBERT has a second count
        backbone.transformer.n_layers = len(kept)


def targets(kept: tuple[int, ...] | None, count: int) -> list[int]:
    """For each layer that stays, of `count`: after how many of the old layers its states should be found.

    It takes over the part of the removed layers that followed it.
    """
    numbers = tuple(range(count)) if kept is None else kept
    return [*numbers[1:], count]


def _block(kind: str, layer: Any) -> TransformerBlock:
    if kind == "distilbert":
        attention = layer.attention
        return TransformerBlock(
            layer, attention, attention.n_heads, attention.out_lin, layer.ffn.lin1, layer.ffn.lin2
        )
    if kind == "mpnet":
        inner = layer.attention.attn
        return TransformerBlock(
            layer,
            layer.attention,
            inner.num_attention_heads,
            inner.o,
            layer.intermediate.dense,
            layer.output.dense,
        )
    attention = layer.attention
    return TransformerBlock(
        layer,
        attention,
        attention.self.num_attention_heads,
        attention.output.dense,
        layer.intermediate.dense,
        layer.output.dense,
    )
