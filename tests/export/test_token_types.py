"""Token types, from the source's tokenizer to a server's answer: as sentence-transformers has them."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny_encoders
import torch
import transformers
from tokenizers import processors

import trimtab
from tests.server.server_process import serve
from trimtab_export import sentences
from trimtab_export.export import export
from trimtab_export.source import Settings

TEMPLATES = {
    "first": "[CLS]:2 $A:0 [SEP]:0",
    "text": "[CLS]:0 $A:1 [SEP]:1",
    "last": "[CLS]:0 $A:0 [SEP]:1",
    "plain": "[CLS] $A [SEP]",
}
# Of different lengths, so that they are padded; some are cut.
TEXTS = [*sentences.load()[:12], "", "x", " ".join(sentences.load()), "y" * 300]


def source(folder: Path, template: str) -> Path:
    """A BERT with three token types, whose tokenizer gives them as the template says."""
    tokenizer = tiny_encoders.wordpiece()
    fast = transformers.BertTokenizerFast(tokenizer_object=tokenizer)
    fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(7)
    config = transformers.BertConfig(vocab_size=len(fast), type_vocab_size=3, **tiny_encoders.SIZES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.BertModel(config).eval().save_pretrained(folder / "hf")
        fast.save_pretrained(folder / "hf")
        modules = [
            tiny_encoders.Transformer(str(folder / "hf"), max_seq_length=40),
            tiny_encoders.Pooling(32, "mean"),
        ]
        model = tiny_encoders.SentenceTransformer(modules=modules, device="cpu")
        model.save(str(folder / "st"), create_model_card=False)
    return folder / "st"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_types_of_a_template_reach_the_graph(isolation: str, tmp_path: Path) -> None:
    sources = {name: source(tmp_path / name, template) for name, template in TEMPLATES.items()}
    for name, folder in sources.items():
        export(Settings(str(folder)), name, tmp_path / "repository")
    wanted = {name: tiny_encoders.encode(folder, TEXTS) for name, folder in sources.items()}
    assert np.abs(wanted["first"] - wanted["plain"]).max() > 0.1, "the types tell nothing here"
    config = f'[engine]\nisolation = "{isolation}"\n'
    with (
        serve(tmp_path / "repository", tmp_path, config) as server,
        trimtab.Client(server.url) as client,
    ):
        for name, vectors in wanted.items():
            np.testing.assert_allclose(client.embed(TEXTS, encoder=name), vectors, atol=1e-4, rtol=0)
            for text, vector in zip(TEXTS, vectors, strict=True):
                np.testing.assert_allclose(client.embed([text], encoder=name)[0], vector, atol=1e-4, rtol=0)
