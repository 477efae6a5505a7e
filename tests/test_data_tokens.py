"""Documents as numbers of sub-words."""

import numpy as np
import pytest

from deepclust_jax import data
from deepclust_jax.data import preprocessing, tokens

TEXTS = [f"The {word} of Zürich sang {i} songs." for i in range(30) for word in ("bird", "choir")]


def test_rows_are_a_start_the_text_and_padding():
    settings, constants = tokens.fit(TEXTS)
    assert constants == {} and settings["length"] == 64
    rows = tokens.apply(settings, TEXTS)
    assert rows.dtype == np.float32 and rows.shape == (60, 64)
    assert (rows[:, 0] == tokens.START).all() and (rows[:, 1:] != tokens.START).all()
    for row in rows:
        n = int((row != tokens.PAD).sum())
        assert 1 < n < 64 and (row[:n] != tokens.PAD).all()  # no padding inside
    assert rows.max() < settings["vocabulary"] <= tokens.VOCABULARY
    assert [text.strip() for text in tokens.decode(settings, rows)] == [t.lower() for t in TEXTS]
    assert (rows != tokens.PAD).sum() < sum(map(len, TEXTS)) / 2  # words, not letters


def test_any_text_has_numbers():
    settings, _ = tokens.fit(TEXTS)
    strange = ["日本語 \U0001f600", "<start><pad>", "", "half a pair \ud83d", "\x00"]
    rows = tokens.apply(settings, strange)
    assert np.isfinite(rows).all() and (rows[2, 1:] == tokens.PAD).all()
    assert (rows[:, 1:] != tokens.START).all()
    decoded = tokens.decode(settings, rows)
    assert [text.strip() for text in decoded[:3]] == strange[:3]


def test_long_documents_are_cut():
    long = " ".join(f"word{i}" for i in range(2000))
    settings, _ = tokens.fit([long] * 10)
    assert settings["length"] == tokens.LONGEST
    assert (tokens.apply(settings, [long]) != tokens.PAD).all()


def test_a_row_depends_on_its_text_alone_and_survives_a_file(tmp_path):
    p = preprocessing.fit(TEXTS, "text", "tokens")
    preprocessing.save(p, tmp_path)
    again = preprocessing.load(tmp_path)
    rows = preprocessing.apply(p, TEXTS)
    np.testing.assert_array_equal(preprocessing.apply(again, TEXTS[7:8])[0], rows[7])


def test_the_vocabulary_is_a_function_of_the_texts():
    assert tokens.fit(TEXTS) == tokens.fit(list(TEXTS))


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(data.DataError, match="found no text in 3 documents"):
        tokens.fit(["", "", ""])
    with pytest.raises(data.DataError, match="are of texts, found tabular data"):
        preprocessing.fit(np.eye(3), "tabular", "tokens")
    np.save(tmp_path / "x.npy", np.eye(3))
    with pytest.raises(data.DataError, match="are of texts, found tabular data"):
        data.load(tmp_path / "x.npy", scaling="tokens")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(data.DataError, match=r'pip install -e ".\[text\]"'):
        tokens.fit(TEXTS)
