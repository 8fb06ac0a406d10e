"""Small hand-made tokenizers of every kind, with templates of all sorts."""

from collections.abc import Callable, Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "fox", "word", "server", "of", "text", "12")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
UNKNOWN = "[UNK]"


def _numbered(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys((*SPECIAL, *pieces)))}


def _finish(tokenizer: Tokenizer, single: str = "[CLS] $A [SEP]") -> Tokenizer:
    ends = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _wordpiece(single: str = "[CLS] $A [SEP]") -> Tokenizer:
    pieces = (*LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS, ".", ",", "é", "如", "σ", "##σ")
    model = models.WordPiece(_numbered(pieces), unk_token=UNKNOWN, max_input_chars_per_word=100)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finish(tokenizer, single)


def _bert() -> Tokenizer:
    tokenizer = _wordpiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_tokens(["the fox"])  # longer than a word
    return tokenizer


def _byte_bpe(alphabet: Iterable[str], *, prefix_space: bool) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "f"), ("o", "x"), ("Ġf", "ox"), (".", ".")]
    alphabet = list(alphabet)
    merges = [pair for pair in merges if all(set(piece) <= set(alphabet) for piece in pair)]
    vocabulary = _numbered((*alphabet, *("".join(pair) for pair in merges)))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    _finish(tokenizer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("[SEP]", 3), ("[CLS]", 2), add_prefix_space=prefix_space
    )
    return tokenizer


def _unigram(*, split: bool, single: str = "[CLS] $A [SEP]") -> Tokenizer:
    scores = {"▁": -2.0, "▁the": -3.0, "fox": -3.5, "▁fox": -4.0, "aa": -4.1, "ab": -4.3, "aaa": -4.5}
    scores["..."] = -5.0
    pieces = dict.fromkeys((*LETTERS, ".", ",", "如", "何", "é", *"0123456789"), -9.0) | scores
    listed = [(name, 0.0) for name in SPECIAL] + list(pieces.items())
    tokenizer = Tokenizer(models.Unigram(listed, unk_id=1, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=split)
    return _finish(tokenizer, single)


def _whole_bpe() -> Tokenizer:
    """Like Llama's: spaces become letters, and merges run over the whole text."""
    pieces = (*LETTERS, "▁", *(f"<0x{byte:02X}>" for byte in range(256)), "▁t", "he", "▁the", "fo", "fox")
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("f", "o"), ("fo", "x")]
    tokenizer = Tokenizer(models.BPE(_numbered(pieces), merges, byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _finish(tokenizer, "[CLS] $A")


def _words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(_numbered(WORDS), UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents(), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    return _finish(tokenizer, "[CLS]:1 [CLS] $A:0 [SEP]:2 [SEP]:3")


_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MADE: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": _wordpiece,
    "wordpiece, first type 2": lambda: _wordpiece("[CLS]:2 $A:0 [SEP]:0"),
    "wordpiece, text of type 1": lambda: _wordpiece("[CLS]:0 $A:1 [SEP]:1"),
    "bert, with an added token of two words": _bert,
    "bytes": lambda: _byte_bpe(_BYTES, prefix_space=False),
    "bytes, with a space before": lambda: _byte_bpe(_BYTES, prefix_space=True),
    "bytes without the letter a": lambda: _byte_bpe(set(_BYTES) - {"a"}, prefix_space=False),
    "unigram of words": lambda: _unigram(split=True),
    "unigram of whole texts": lambda: _unigram(split=False, single="$A:1 [SEP]:2"),
    "bpe of whole texts": _whole_bpe,
    "words": _words,
}
