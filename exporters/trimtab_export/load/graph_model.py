"""A graph in place of the torch model that sentence-transformers would load.

The library then reads all other files as it does for weights, and its own code turns texts into ids and the
graph's output into a vector. So the comparison's reference shares only the graph with the bundle.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from trimtab_export import runtime
from trimtab_export.load import files, library
from trimtab_export.load.declared import Declared
from trimtab_export.source import Settings

NO_CODE = {"trust_remote_code": False}
LOGITS = "logits"  # a classifier's output
# transformers' name of a model type whose tokenizer is just a tokenizer.json.
PLAIN_TOKENIZER = "modernbert"


class Backbone(torch.nn.Module):
    """The graph; `config` is what is known about its original model."""

    def __init__(self, session: Any, output: str) -> None:
        super().__init__()
        self.output = output
        self.config = PretrainedConfig()
        self._session = session

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> dict[str, torch.Tensor]:
        """The output under the name that the library's Transformer asks for."""
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types}
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        name = LOGITS if self.output == LOGITS else "last_hidden_state"
        return {name: torch.from_numpy(runtime.run(self._session, self.output, arrays))}

    def of_ones(self) -> NDArray[Any]:
        """The graph's output for two texts of three tokens."""
        ones = np.ones((2, 3), dtype=np.int64)
        batch = {"input_ids": ones, "attention_mask": ones, "token_type_ids": np.zeros_like(ones)}
        return runtime.run(self._session, self.output, batch)


def model(
    settings: Settings, name: str, home: str, says: Declared | None, backbone: Backbone, *, pooled: bool
) -> Any:
    """The library's model of the files in `home`, with the graph called `name` as its backbone.

    Args:
        pooled: the graph outputs vectors, and no modules.json says otherwise.
    """
    folder = says.transformer_folder if says else ""
    backbone.config, processor = _config(home, folder)

    class OfGraph(Transformer):  # type: ignore[misc]
        def _load_config(self, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
            return backbone.config, False

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            return backbone

    class OfFiles(SentenceTransformer):  # type: ignore[misc]
        def _load_module_class_from_ref(self, *args: Any, **kwargs: Any) -> Any:
            kind = super()._load_module_class_from_ref(*args, **kwargs)
            return OfGraph if issubclass(kind, Transformer) else kind

    if says is not None:
        return OfFiles(home, device="cpu", processor_kwargs=processor)
    transformer = OfGraph(home, processor_kwargs={**NO_CODE, **processor})
    if pooled:
        transformer.module_output_name = "sentence_embedding"
        behind = [Normalize()] if settings.normalize else []
    else:
        pooling = library.given_pooling(name, settings)
        behind = library.given_head(pooling, settings, backbone.of_ones().shape[-1])
    return SentenceTransformer(modules=[transformer, *behind], device="cpu")


def classifier(home: str, folder: str, backbone: Backbone, task: str) -> Any:
    """The library's CrossEncoder of the files in `home`, with a graph for sequence classification."""
    backbone.config, processor = _config(home, folder)

    class OfGraph(Transformer):  # type: ignore[misc]
        def _load_config(self, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
            return backbone.config, False

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            return backbone

    transformer = OfGraph(
        str(Path(home, folder)),
        transformer_task=task,
        processor_kwargs={**NO_CODE, **processor},
        modality_config={"text": {"method": "forward", "method_output_name": LOGITS}},
        module_output_name="scores",
    )
    return CrossEncoder(modules=[transformer], device="cpu")


def _config(home: str, folder: str) -> tuple[Any, dict[str, Any]]:
    """The configuration, and the arguments that make the library find the tokenizer of an unknown model."""
    content = files.mapping(home, "config.json", folder)
    if content.get("model_type") in CONFIG_MAPPING:
        return AutoConfig.from_pretrained(home, subfolder=folder, **NO_CODE), {}
    config = PretrainedConfig.from_dict(content)
    named = files.mapping(home, "tokenizer_config.json", folder).get("tokenizer_class")
    return config, {"config": config, **({} if named else {"tokenizer_type": PLAIN_TOKENIZER})}
