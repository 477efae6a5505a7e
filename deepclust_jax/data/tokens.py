"""Documents as numbers of sub-words: a vocabulary learnt from them by byte-pair encoding (Sennrich
et al. 2016), by the `tokenizers` library.

Letters become small ones. Bytes are the smallest units, so that no text is unknown.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from deepclust_jax.data.errors import DataError

PAD, START = 0, 1  # behind a document, and its first number
VOCABULARY = 4096
WINDOW = 64  # rows have a multiple of it
LONGEST = 512  # numbers of a row


def fit(texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Vocabulary and length of rows (settings) for documents; no arrays.

    The length is the 95th percentile of the documents, rounded up to a multiple of 64, at most 512.
    Raises DataError where there is no text at all, or the library is missing.
    """
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.normalizer = library.normalizers.Sequence(
        [library.normalizers.NFKC(), library.normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel()
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=["<pad>", "<start>"],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_clean, texts), trainer)
    lengths = [1 + len(found) for found in _encode(tokenizer, texts)]
    if max(lengths) == 1:
        raise DataError(f"found no text in {len(texts)} documents; expected one document a row")
    wanted = int(np.ceil(np.percentile(lengths, 95) / WINDOW)) * WINDOW
    settings = {
        "scaling": "tokens",
        "length": min(wanted, LONGEST),
        "vocabulary": tokenizer.get_vocab_size(),
        "tokenizer": json.loads(tokenizer.to_str()),
    }
    return settings, {}


def apply(settings: dict[str, Any], texts: Sequence[str]) -> np.ndarray:
    """Numbers of the sub-words of each document. -> float32 [n, length] of whole numbers.

    Each row begins with START; longer documents are cut, shorter ones filled with PAD.
    """
    rows = np.full((len(texts), settings["length"]), PAD, np.float32)
    rows[:, 0] = START
    for row, found in zip(rows, _encode(_stored(settings), texts), strict=True):
        kept = found[: len(row) - 1]
        row[1 : 1 + len(kept)] = kept
    return rows


def decode(settings: dict[str, Any], rows: np.ndarray) -> list[str]:
    """The text that numbers of sub-words [n, t] stand for, without PAD and START."""
    return _stored(settings).decode_batch(np.asarray(rows, int).tolist(), skip_special_tokens=True)


def _stored(settings):
    return _library().Tokenizer.from_str(json.dumps(settings["tokenizer"]))


def _encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    tokenizer.encode_special_tokens = True  # a <start> in the text itself is text
    found = tokenizer.encode_batch_fast([_clean(text) for text in texts], add_special_tokens=False)
    return [one.ids for one in found]


def _clean(text: str) -> str:
    return str(text).encode("utf-8", errors="replace").decode("utf-8")  # JSON holds half a pair


def _library():
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            'text as tokens needs the tokenizers library: pip install -e ".[text]"'
        ) from None
    return tokenizers
