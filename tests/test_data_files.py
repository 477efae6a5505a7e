"""Own files: what is read, and one clear line for everything that cannot be."""

import os

import numpy as np
import pytest

from deepclust_jax import data
from deepclust_jax.data import files, preprocessing, tables

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(12, 3)) * [1.0, 10.0, 100.0]
PICTURES = RNG.integers(0, 256, size=(6, 5, 4, 3), dtype=np.uint8)


def fails(message, *args, **options):
    """Assert that load raises one line that contains `message`."""
    with pytest.raises(data.DataError) as caught:
        data.load(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert message in line, line


def write_csv(path, values, header=None, labels=None):
    rows = [list(map(repr, row)) for row in values.tolist()]
    if labels is not None:
        rows = [[*row, label] for row, label in zip(rows, labels, strict=True)]
    path.write_text("\n".join(",".join(row) for row in ([header] if header else []) + rows))
    return path


def test_csv_npy_npz_and_parquet_give_the_same_rows(tmp_path):
    import pyarrow
    from pyarrow import parquet

    np.save(tmp_path / "a.npy", TABLE)
    np.savez_compressed(tmp_path / "a.npz", X=TABLE, n_train=3)
    write_csv(tmp_path / "a.csv", TABLE, header=["u", "v", "w"])
    table = {name: TABLE[:, i] for i, name in enumerate("uvw")}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    loaded = [data.load(tmp_path / f"a.{end}") for end in ("npy", "npz", "csv", "parquet")]
    for dataset, labels in loaded:
        assert labels is None and dataset.kind == "tabular" and dataset.n_clusters is None
        assert dataset.x.dtype == np.float32 and dataset.x.flags.c_contiguous
        np.testing.assert_array_equal(dataset.x, loaded[0][0].x)
        assert dataset.checksum == loaded[0][0].checksum
    assert loaded[2][0].names == loaded[3][0].names == ("u", "v", "w")


def test_texts_of_a_table_are_its_column_of_that_name(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = ["red, and green", "blue whales\nswim", "apples fall"]
    lines = ["id,Text,topic", *(f'{i},"{text}",t{i % 2}' for i, text in enumerate(texts))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    columns = {"id": [0, 1, 2], "text": texts, "topic": ["t0", "t1", "t0"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    long = {**columns, "text": pyarrow.array(texts, pyarrow.large_string())}
    parquet.write_table(pyarrow.table(long), tmp_path / "long.parquet")
    for file in ("a.csv", "a.parquet", "long.parquet"):
        dataset, labels = data.load(tmp_path / file, labels="topic")
        assert dataset.kind == "text" and list(dataset.raw) == texts and dataset.names == ()
        np.testing.assert_array_equal(labels, [0, 1, 0])
        assert data.load(tmp_path / file)[1] is None
        assert data.load(tmp_path / file, scaling="tokens")[0].x.shape[0] == 3
    (tmp_path / "b.csv").write_text("text,u\n1,2\n3,5\n4,4\n")
    assert data.load(tmp_path / "b.csv")[0].kind == "tabular", "a number is no text"
    parquet.write_table(pyarrow.table({"text": ["a b", None, "c"]}), tmp_path / "c.parquet")
    fails("1 rows have no text", tmp_path / "c.parquet")
    (tmp_path / "d.csv").write_text("text,label\nred apples,0\nblue\nblue whales,1\n")
    fails("line 3: row 1 (counted from 0) has 1 cells", tmp_path / "d.csv")


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("a,b\n1,2\n3,5\n", True),
        ("1,2\n3,5\n", False),
        ("a;b\n1;2\n3;5\n", True),
        ("\ufeffa\tb\n1\t2\n\n3\t5\n", True),
        ('"a, b",c\n1,2\n3,5', True),
        ("1,b\n1,2\n3,5", True),  # a name above a number
    ],
)
def test_csv_separators_and_headers(tmp_path, text, header):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    dataset, _ = data.load(tmp_path / "t.csv")
    np.testing.assert_array_equal(dataset.raw, [[1, 2], [3, 5]])
    assert bool(dataset.names) == header


def test_column_numbers_of_pandas_are_a_header(tmp_path):
    (tmp_path / "t.csv").write_text("0,1,2,3\n5,5,5,5\n6,5,5,5\n")
    assert data.load(tmp_path / "t.csv")[0].raw.shape == (2, 4)


@pytest.mark.parametrize(
    ("head", "labels"),
    [("label,0,1,2", None), ("species,4,5,6", "species"), ("\n\nlabel,u,v,w", None)],
)
def test_a_header_that_is_hard_to_tell(tmp_path, head, labels):
    (tmp_path / "t.csv").write_text(f"{head}\nb,1,2,3\na,4,5,7\n")
    dataset, y = data.load(tmp_path / "t.csv", labels=labels)
    np.testing.assert_array_equal(dataset.raw, [[1, 2, 3], [4, 5, 7]])
    assert y.tolist() == [1, 0] and dataset.classes == ("a", "b")


@pytest.mark.parametrize("column", ["species", "Label", "class"])
def test_label_columns_are_apart(tmp_path, column):
    names = ["b", "a", "b", "c"] * 3
    path = write_csv(tmp_path / "t.csv", TABLE, ["u", "v", "w", column], names)
    dataset, labels = data.load(path, labels="species" if column == "species" else None)
    np.testing.assert_array_equal(labels, [1, 0, 1, 2] * 3)  # sorted order
    assert labels.dtype == np.int64
    assert dataset.names == ("u", "v", "w")


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_that_pandas_wrote_is_no_feature(tmp_path, name):
    """Trap: `to_csv()` writes the row numbers, the largest "feature" of all."""
    rows = np.column_stack([np.arange(12.0), TABLE])
    path = write_csv(tmp_path / "t.csv", rows, [name, "u", "v", "w"])
    fails("column 0 has no name and numbers the rows, as an index that pandas or R wrote", path)
    rows[:, 0] = RNG.permutation(12) + 5  # of a shuffled part
    fails("numbers the rows", write_csv(tmp_path / "t.csv", rows, [name, "u", "v", "w"]))
    # A nameless column of measurements, or a number that has a name, is a feature.
    rows[:, 0] += 0.5
    path = write_csv(tmp_path / "t.csv", rows, [name, "u", "v", "w"])
    assert data.load(path)[0].x.shape == (12, 4)
    rows[:, 0] = np.arange(12)
    path = write_csv(tmp_path / "t.csv", rows, ["day", "u", "v", "w"])
    assert data.load(path)[0].x.shape == (12, 4)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_columns_of_new_data_are_matched_by_name(tmp_path, ending):
    """Trap: columns in another order are assigned as if they were in the old one."""
    import pyarrow
    from pyarrow import parquet

    def table(names, columns):
        path = tmp_path / f"t.{ending}"
        if ending == "csv":
            return write_csv(path, TABLE[:, columns], names)
        values = {name: TABLE[:, i] for name, i in zip(names, columns, strict=True)}
        parquet.write_table(pyarrow.table(values), path)
        return path

    trained, _ = data.load(table(["u", "v", "w"], [0, 1, 2]))
    assert trained.preprocessing.columns == ("u", "v", "w")
    preprocessing.save(trained.preprocessing, tmp_path)
    stored = preprocessing.load(tmp_path)
    turned, _ = data.load(table(["w", "u", "v"], [2, 0, 1]), preprocessing=stored)
    np.testing.assert_array_equal(turned.x, trained.x)
    assert turned.names == ("u", "v", "w")
    other = table(["u", "v", "x"], [0, 1, 2])
    fails("missing 'w'; unexpected 'x'); rename", other, preprocessing=stored)
    fails("missing 'w')", table(["u", "v"], [0, 1]), preprocessing=stored)
    # Without names there is nothing but the order.
    np.save(tmp_path / "t.npy", TABLE)
    np.testing.assert_array_equal(
        data.load(tmp_path / "t.npy", preprocessing=stored)[0].x, trained.x
    )


def test_numeric_label_column_of_parquet_is_no_feature(tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {"u": TABLE[:, 0], "target": np.arange(12) % 3 + 5, "v": TABLE[:, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    dataset, labels = data.load(tmp_path / "t.parquet")
    assert dataset.names == ("u", "v")
    np.testing.assert_array_equal(labels, np.arange(12) % 3)


def test_label_files(tmp_path):
    np.save(tmp_path / "x.npy", TABLE)
    expected = np.arange(12) % 3
    np.save(tmp_path / "l.npy", expected + 9)
    (tmp_path / "l.txt").write_text("\n".join(str(i + 9) for i in expected) + "\n")  # 9 before 10
    (tmp_path / "l.csv").write_text("label\n" + "\n".join("xyz"[i] for i in expected))
    for name in ("l.npy", "l.txt", "l.csv"):
        _, labels = data.load(tmp_path / "x.npy", labels=tmp_path / name)
        np.testing.assert_array_equal(labels, expected)
        _, labels = data.load(tmp_path / "x.npy", labels=str(tmp_path / name), limit=5)
        kept = np.random.default_rng(0).permutation(12)[:5]
        np.testing.assert_array_equal(labels, expected[kept])


def test_labels_inside_npz_are_returned_apart(tmp_path):
    np.savez(tmp_path / "x.npz", points=TABLE, labels=np.arange(12) // 6)
    dataset, labels = data.load(tmp_path / "x.npz")
    np.testing.assert_array_equal(labels, np.arange(12) // 6)
    assert dataset.x.shape == (12, 3)


def test_wrong_labels(tmp_path):
    np.save(tmp_path / "one.npy", np.array(3))
    np.save(tmp_path / "x.npy", TABLE)
    fails("found 1 labels", tmp_path / "x.npy", labels=tmp_path / "one.npy")
    path = write_csv(tmp_path / "x.csv", TABLE, ["u", "v", "w"])
    np.save(tmp_path / "short.npy", np.arange(7))
    fails("found 7 labels, but x.csv has 12 rows", path, labels=tmp_path / "short.npy")
    fails("no column and no file 'z' for the labels; found columns u, v, w", path, labels="z")
    np.save(tmp_path / "half.npy", np.arange(12) / 2)
    fails("expected whole numbers or names", path, labels=tmp_path / "half.npy")
    (tmp_path / "gap.txt").write_text("a\n\n" + "b\n" * 10)
    fails("row 1 (counted from 0) has no label", path, labels=tmp_path / "gap.txt")
    (tmp_path / "l.json").write_text("[]")
    fails("expected a file ending in .npy, .txt, .csv", path, labels=tmp_path / "l.json")
    np.save(tmp_path / "objects.npy", np.array([None] * 12), allow_pickle=True)
    fails("not a plain array", path, labels=tmp_path / "objects.npy")
    fails("no labels y: found neither a column nor a file", "digits", labels="y")
    both = write_csv(tmp_path / "two.csv", TABLE, ["u", "label", "class"])
    fails("found label and class; say by --labels which are", both)
    twice = write_csv(tmp_path / "twice.csv", TABLE, ["species", "u", "species"])
    fails("found two columns 'species'", twice, labels="species")


def test_arrays_by_shape_and_kind(tmp_path):
    np.save(tmp_path / "p.npy", PICTURES)
    np.save(tmp_path / "g.npy", PICTURES[..., 0])
    np.save(tmp_path / "f.npy", PICTURES / 255)
    colour, grey = data.load(tmp_path / "p.npy")[0], data.load(tmp_path / "g.npy")[0]
    assert (colour.kind, colour.x.shape) == ("image", (6, 5, 4, 3))
    assert (grey.kind, grey.x.shape) == ("image", (6, 5, 4, 1))
    np.testing.assert_array_equal(colour.x, np.float32(PICTURES / 255.0))
    flat = data.load(tmp_path / "p.npy", kind="tabular")[0]
    assert (flat.kind, flat.x.shape) == ("tabular", (6, 60))
    assert data.load(tmp_path / "f.npy", kind="image")[0].x.max() == 1.0
    fails("--kind tabular flattens rows", tmp_path / "f.npy")
    np.save(tmp_path / "first.npy", PICTURES.transpose(0, 3, 1, 2).repeat(2, axis=3))
    fails("channels last", tmp_path / "first.npy")
    fails("expected audio data, found an array", tmp_path / "p.npy", kind="audio")


@pytest.mark.parametrize("dtype", ["float16", "int64", "uint16", "bool", ">f8", ">i2"])
def test_every_real_type_is_read(tmp_path, dtype):
    x = (TABLE > 0).astype(dtype) if dtype == "bool" else TABLE.astype("i2").clip(0).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    dataset, _ = data.load(tmp_path / "x.npy", scaling="none")
    np.testing.assert_array_equal(dataset.x, x.astype(np.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 3)), "expected at least one row and one column, found (0, 3)"),
        (np.zeros((3, 0)), "expected at least one row and one column, found (3, 0)"),
        (np.ones((4, 3)), "all 4 rows are equal"),
        (np.ones(4), "expected rows [n, d]"),
        (np.array([["a", "b"]]), "found strings"),
        (np.ones((2, 2)) * 1j, "found complex numbers"),
        (np.zeros(3, [("a", "f4")]), "found values of type"),
        (np.array([[1.0, np.nan], [np.inf, np.nan]]), "2 NaN and 1 infinite values, the first at"),
        (np.array([[1.0, 2.0], [3.0, np.inf]]), "at row 1, column 1 (counted from 0)"),
        (np.array([[1e300, 2.0], [3.0, 4.0]]), "too large to be standardised"),
    ],
)
def test_arrays_that_cannot_be_clustered(tmp_path, x, message):
    np.save(tmp_path / "x.npy", x)
    fails(message, tmp_path / "x.npy")


def test_values_beyond_float32_are_not_made_infinite(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[1e60, 2.0], [3.0, 4.0]]))
    fails("beyond float32", tmp_path / "x.npy", scaling="none")
    assert np.isfinite(data.load(tmp_path / "x.npy")[0].x).all()


def test_damaged_and_pickled_files(tmp_path, monkeypatch):
    ragged = np.array([[1, 2], [3]], dtype=object)
    np.save(tmp_path / "ragged.npy", ragged, allow_pickle=True)
    fails("ragged rows or a pickle", tmp_path / "ragged.npy")
    np.savez(tmp_path / "ragged.npz", X=ragged, allow_pickle=True)
    fails("ragged rows or a pickle", tmp_path / "ragged.npz")
    (tmp_path / "p.npy").write_bytes(b"\x80\x04\x95\x00")
    fails("is not a plain array", tmp_path / "p.npy")
    np.savez_compressed(tmp_path / "whole.npz", X=RNG.normal(size=(200, 20)))
    whole = (tmp_path / "whole.npz").read_bytes()
    for cut in (100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        fails("damaged or cut short", tmp_path / "cut.npz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    (tmp_path / "cut.npz").write_bytes(bytes(flipped))
    fails("damaged or cut short", tmp_path / "cut.npz")
    np.save(tmp_path / "x.npy", TABLE)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    fails("damaged or cut short", tmp_path / "cut.npy")
    monkeypatch.setattr(files, "MAP_BYTES", 1)
    fails("damaged or cut short", tmp_path / "cut.npy")
    np.savez(tmp_path / "many.npz", a=TABLE, b=TABLE)
    fails("expected an array X, x or only one, found ['a', 'b']", tmp_path / "many.npz")


def test_paths_that_cannot_be_read(tmp_path, monkeypatch):
    fails("no file or folder", tmp_path / "nothing.npy")
    fails("no file or folder nothing.npy", "nothing.npy")
    (tmp_path / "x.xls").write_text("1")
    fails("cannot tell what", tmp_path / "x.xls")
    (tmp_path / "e.csv").write_text("")
    fails("is empty (0 bytes)", tmp_path / "e.csv")
    (tmp_path / "broken.npy").symlink_to(tmp_path / "gone.npy")
    fails("cannot read", tmp_path / "broken.npy")
    (tmp_path / "folder").mkdir()
    fails("holds no pictures", tmp_path / "folder")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "x.npy")

    np.save(tmp_path / "x.npy", TABLE)
    monkeypatch.setattr(np, "load", refuse)
    fails("cannot read x.npy: Permission denied", tmp_path / "x.npy")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission(tmp_path):
    np.save(tmp_path / "x.npy", TABLE)
    (tmp_path / "x.npy").chmod(0)
    fails("Permission denied", tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b\nred,2\nblue,3\n",
            "row 0 (counted from 0): expected a number, found 'red'; drop the column",
        ),
        (
            "a,b\n1,2\n\n3,n/a\n",
            "line 4: column 'b', row 1 (counted from 0): expected a number, "
            "found 'n/a'; fill it, or drop the row or the column",
        ),
        ("a,b\n1,\n3,4\n", "found an empty cell; fill it, or drop the row"),
        (
            "a,b,c\n1,2,3\nx,2,\n1,2,?\n",
            "row 1 (counted from 0): expected a number, found 'x'; fill it, or drop the row or the "
            "column (3 such cells in all, in 'a', 'c')",
        ),
        ("a,b\n1,2\n3\n", "row 1 (counted from 0) has 1 cells, expected 2"),
        ("a,b\n1,2,3\n3,4,5\n", "row 0 (counted from 0) has 3 cells, expected 2"),
        ("a,label\n1,x\n3\n", "row 1 (counted from 0) has 1 cells, expected 2"),
        ("a,b\n", "a header line but no rows"),
        ("a,b\n1,nan\n2,3\n", "1 NaN and 0 infinite"),
        ("label\nx\ny\n", "at least one column of numbers"),
    ],
)
def test_csv_that_is_no_table_of_numbers(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    fails(message, tmp_path / "t.csv")


def test_csv_in_another_encoding(tmp_path):
    for head in (b"", b"a,b\n" + b"1,2\n" * 9999):
        (tmp_path / "t.csv").write_bytes(head + b"gr\xf6\xdfe,b\n1,2\n")
        fails("not a csv file in UTF-8", tmp_path / "t.csv")


def test_parquet_errors(tmp_path, monkeypatch):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1.0, 2.0], "b": ["x", "y"]}), tmp_path / "s.parquet")
    fails("column 'b' holds string, expected numbers", tmp_path / "s.parquet")
    _, labels = data.load(tmp_path / "s.parquet", labels="b")
    np.testing.assert_array_equal(labels, [0, 1])
    parquet.write_table(pyarrow.table({"a": [1.0, None]}), tmp_path / "n.parquet")
    fails("column 'a' has 1 missing values", tmp_path / "n.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "s.parquet").read_bytes()[:50])
    fails("not a readable parquet file", tmp_path / "cut.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    fails("needs pyarrow; install deepclust_jax[data]", tmp_path / "s.parquet")


def test_large_files_stay_on_disk(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", TABLE)
    resident, _ = data.load(tmp_path / "x.npy")
    monkeypatch.setattr(files, "MAP_BYTES", 1)
    mapped, _ = data.load(tmp_path / "x.npy")
    assert isinstance(mapped.raw, np.memmap)
    assert isinstance(mapped.x, data.preprocessing.Rows)
    assert mapped.x.shape == (12, 3) and len(mapped.x) == 12 and mapped.x.dtype == np.float32
    np.testing.assert_array_equal(mapped.x[np.array([3, 1, 7])], resident.x[[3, 1, 7]])
    np.testing.assert_array_equal(mapped.x[2:5], resident.x[2:5])
    limited, _ = data.load(tmp_path / "x.npy", limit=4)
    assert type(limited.x) is np.ndarray and limited.x.shape == (4, 3)
    again, _ = data.load(tmp_path / "x.npy")
    assert again.checksum == mapped.checksum
    np.save(tmp_path / "x.npy", TABLE + np.eye(12, 3))
    assert data.load(tmp_path / "x.npy")[0].checksum != mapped.checksum


def test_column_split_keeps_reserved_names_out():
    label, features = tables.split_columns(["u", "class", "kind"], 3, "kind", "t.csv")
    assert (label, features) == (2, [0])
