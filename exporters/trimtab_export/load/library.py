"""A source as its own library reads it: the common part of torch sources and graphs.

For every kind, sentence-transformers and transformers read the files, and the model that they build is the
reference of the comparison. The export takes the head, the prompts and the tokenizer from that model.
"""

from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Normalize as NormalizeModule
from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule

from trimtab.artifacts.manifest import Prompts
from trimtab.errors import ExportError
from trimtab.kinds import Pooling
from trimtab_export.load import files
from trimtab_export.runtime import first_line
from trimtab_export.source import Activation, Dense, Embed, Head, Layer, Normalize, Settings

POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last", "max": "max"}
MODES = {pooling: mode for mode, pooling in POOLINGS.items()}
REFERENCE_BATCH = 8
# Other names of a passage's prompt; encode_document reads only `document`.
OTHER_PASSAGES = ("passage", "corpus")


def given_pooling(source: str, settings: Settings) -> Pooling:
    """The user's pooling, for a source that declares none."""
    if settings.pooling is None:
        raise ExportError(
            f"{source} does not declare how to pool token states (it has no modules.json): give --pooling "
            "mean, cls, last or max, as its authors say, and --normalize if they do"
        )
    return settings.pooling


def given_head(pooling: Pooling, settings: Settings, width: int) -> list[Any]:
    """The user's modules after a transformer whose states have this width."""
    normalize = [NormalizeModule()] if settings.normalize else []
    return [PoolingModule(width, MODES[pooling]), *normalize]


def head(model: Any) -> Head:
    """What the modules after the transformer do, as plain data."""
    pooling: Pooling | None = None
    layers: list[Layer] = []
    for module in list(model)[1:]:
        if isinstance(module, PoolingModule):
            pooling = _pooling(module)
        elif isinstance(module, NormalizeModule):
            layers.append(Normalize())
        else:
            layers.append(dense(module))
    return Head(pooling, tuple(layers))


def _pooling(module: Any) -> Pooling:
    mode = module.pooling_mode
    if not isinstance(mode, str):
        raise ExportError(
            f"the pooling joins several modes, {' and '.join(mode)}; one of {', '.join(POOLINGS)} is needed"
        )
    if mode not in POOLINGS:
        raise ExportError(f"the pooling mode {mode} cannot be exported; these can: {', '.join(POOLINGS)}")
    if not module.include_prompt:
        raise ExportError(
            "the pooling leaves the prompt's tokens out (include_prompt = false), which cannot be exported"
        )
    return POOLINGS[mode]


def dense(module: Any) -> Dense:
    """A fully connected layer of the library as plain data."""

    def array(parameter: Any) -> NDArray[np.float32]:
        values: NDArray[np.float32] = parameter.detach().float().numpy()
        return values

    activation = next(
        name for name in get_args(Activation) if name == type(module.activation_function).__name__
    )
    bias = module.linear.bias
    return Dense(array(module.linear.weight), None if bias is None else array(bias), activation)


def check(
    source: str,
    model: Any,
    gives: str,
    output: str = "last_hidden_state",
    task: str = "feature-extraction",
) -> None:
    """Refuse a model whose path from text to the backbone's output `gives` differs from a bundle's.

    output: what transformers calls this output. task: what the library loads the backbone for.
    """
    transformer = model[0]
    text = transformer.modality_config.get("text", {})
    if list(transformer.modality_config) != ["text"] or transformer.module_output_name != gives:
        modalities = ", ".join(str(modality) for modality in transformer.modality_config)
        raise ExportError(
            f"{source} takes {modalities} and gives {transformer.module_output_name}; "
            f"an encoder that can be exported takes text and gives {gives}"
        )
    if text != {"method": "forward", "method_output_name": output}:
        raise ExportError(
            f"{source} takes {text.get('method_output_name')} of {text.get('method')}() (modality_config in "
            f"sentence_bert_config.json); an encoder that can be exported takes {output} of forward()"
        )
    if transformer.transformer_task != task:
        raise ExportError(f"{source} is for {transformer.transformer_task}; only encoders can be exported")
    if transformer.processing_kwargs:
        raise ExportError(
            f"{source} sets processing_kwargs ({', '.join(transformer.processing_kwargs)}) for "
            "its tokenizer, which a tokenizer.json cannot hold"
        )
    if transformer.config.is_encoder_decoder:
        raise ExportError(f"{source} has a decoder; an encoder that can be exported has none")
    kinds = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if kinds:
        raise ExportError(
            f"{source} asks to be computed in {str(kinds.pop()).removeprefix('torch.')} (torch_dtype in "
            "sentence_bert_config.json), but a bundle computes in float32: remove that setting"
        )


def max_tokens(
    source: str, asked: int | None, model: Any, positions: int | None, *, pairs: bool = False
) -> int:
    """How many tokens of a text are read; also sets this on the model.

    Args:
        source: its name in messages.
        asked: --max-tokens.
        model: has the value of the source's files; an absurdly large number means that they have none.
        positions: the longest text that the backbone has positions for; None if unlimited.
        pairs: two texts are read together.
    """
    if asked is not None:
        if positions is not None and asked > positions:
            raise ExportError(f"--max-tokens {asked} is more than the encoder's {positions} positions")
        most = asked
    else:
        files.check_whole(source, "model_max_length", model.max_seq_length)
        known = [
            limit
            for limit in (model.max_seq_length, positions)
            if limit is not None and limit < files.UNLIMITED
        ]
        if not known:
            raise ExportError("the source does not say how many tokens of a text it reads: give --max-tokens")
        most = min(known)
    special = model.tokenizer.num_special_tokens_to_add(pair=pairs)
    if most <= special:
        raise ExportError(
            f"texts are cut to {most} tokens, of which {special} are special tokens: none of the text "
            "would be read. Give a larger --max-tokens"
        )
    if model.max_seq_length != most:
        model.max_seq_length = most
    return most


def prompts(model: Any, settings: Settings) -> tuple[Prompts, tuple[str, ...]]:
    """The prompt of each role, and a line for each declared prompt that belongs to no role.

    A role's prompt is the user's if given, else what encode_query or encode_document puts before a text.
    Refused if the source contradicts itself about passages, or if encode() puts a prompt before every text
    that belongs to no role.
    """
    named: dict[str, str] = model.prompts
    query, passage = settings.query_prompt, settings.passage_prompt
    if passage is None and not named["document"]:
        for name in OTHER_PASSAGES:
            if named.get(name):
                raise ExportError(
                    f"the source declares the prompt {name} ({named[name]!r}), which encode_document does "
                    f"not use (its own, document, is empty): give --passage-prompt {named[name]!r}, or ''"
                )
    chosen = Prompts(
        query=named["query"] if query is None else query,
        passage=named["document"] if passage is None else passage,
    )
    default = named[model.default_prompt_name] if model.default_prompt_name else ""
    if default and default not in (chosen.query, chosen.passage) and None in (query, passage):
        raise ExportError(
            f"encode() of the source puts {default!r} before every text (default_prompt_name "
            f"{model.default_prompt_name}), which is neither the query's prompt nor the passage's: give "
            "--query-prompt and --passage-prompt"
        )
    how = "can be put before it by the caller" if chosen == Prompts() else "cannot be asked for"
    return chosen, tuple(
        f"the prompt {name} ({text!r}) is declared, but it is of no role: it {how}"
        for name, text in named.items()
        if text and text not in (chosen.query, chosen.passage)
    )


def embed_with(source: str, model: Any) -> Embed:
    """The library's own answer."""

    def embed(texts: list[str], prompt: str) -> NDArray[np.float32]:
        try:
            vectors: NDArray[np.float32] = model.encode(
                texts, prompt=prompt, batch_size=REFERENCE_BATCH, show_progress_bar=False
            )
        except ExportError:
            raise
        except Exception as error:
            raise ExportError(
                f"{source} itself fails on the texts of the comparison: {first_line(error)}. "
                "Do its tokenizer and its weights belong together?"
            ) from error
        return vectors

    return embed
