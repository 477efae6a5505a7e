"""The notebooks run, and the stored ones are what their sources say."""

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = (
    "01_quickstart", "02_write_your_own_loss", "03_sounds_and_pictures", "04_pictures", "05_texts",
    "06_gan",
)  # fmt: skip
ON_DATA = NAMES[2:5]  # of DEEPCLUST_DATA_DIR


@pytest.fixture(scope="module")
def execute() -> dict:
    """The names of notebooks/execute.py."""
    for name in ("jupytext", "nbclient"):
        pytest.importorskip(name, reason=f"{name} is not installed: no notebooks")
    return runpy.run_path(str(FOLDER / "execute.py"))


def stored(name: str):
    """A stored notebook, checked against the schema of its format."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: no notebooks")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    return notebook


def test_every_source_is_tested_and_stored(execute):
    assert tuple(path.stem for path in execute["sources"]()) == NAMES
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_source_runs(name, monkeypatch, capsys, request):
    if name in ON_DATA:
        request.getfixturevalue("data_dir")
    pytest.importorskip("IPython", reason="IPython is not installed: no notebooks")
    monkeypatch.setenv("DEEPCLUST_FAST", "1")
    names = runpy.run_path(str(FOLDER / f"{name}.py"))
    assert names["FAST"] and names["N_SEEDS"] == 2
    out = capsys.readouterr().out
    assert not re.search(r"\bnan\b", out), "a word of a text may have these letters"
    assert "Image object" in out


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebook_is_made_from_its_source(name, execute):
    built, found = execute["build"](FOLDER / f"{name}.py"), stored(name)
    assert [(c.id, c.cell_type, c.source) for c in found.cells] == [
        (c.id, c.cell_type, c.source) for c in built.cells
    ]
    assert found.metadata == built.metadata


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebook_was_run_in_order_without_error(name, execute):
    notebook = stored(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    # Cells that print or show must have an output; the others hold imports and definitions.
    shows = [cell for cell in code if "print(" in cell.source or "display(" in cell.source]
    assert len(shows) >= 5 and all(cell.outputs for cell in shows)
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    execute["check_size"](notebook, name)


@pytest.mark.parametrize("name", NAMES)
def test_stored_notebook_has_nothing_that_changes_by_itself(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    for word in ('"execution": {', "iopub", "shell.execute_reply", " at 0x", str(Path.home())):
        assert word not in text
    assert all(cell.metadata == {} for cell in stored(name).cells)


def test_stored_notebook_is_not_of_the_fast_setting():
    seeds = {"01_quickstart": "(3, 1797", "02_write_your_own_loss": "5 seeds show"}
    seeds["03_sounds_and_pictures"] = "3000 clips at 8000 Hz"
    seeds |= {"04_pictures": "2000 pictures", "05_texts": "3000 texts"}
    seeds["06_gan"] = "8192 points"
    for name, expected in seeds.items():
        assert expected in str([cell.get("outputs") for cell in stored(name).cells])


def test_large_outputs_are_refused(execute):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: no notebooks")
    cell = nbformat.v4.new_code_cell("print()")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    cell.outputs = [nbformat.v4.new_output("stream", text="x" * (execute["MAX_OUTPUT"] - 1000))]
    execute["check_size"](notebook, "fits")
    cell.outputs = [nbformat.v4.new_output("stream", text="x" * (execute["MAX_OUTPUT"] + 1))]
    with pytest.raises(ValueError, match="expected at most 500000 bytes of outputs in large"):
        execute["check_size"](notebook, "large")


def test_build_gives_the_same_notebook_twice(execute):
    source = FOLDER / f"{NAMES[0]}.py"
    assert execute["build"](source) == execute["build"](source)
    ids = [cell.id for cell in execute["build"](source).cells]
    assert len(set(ids)) == len(ids)
