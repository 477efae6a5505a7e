"""Rebuild every notebook from its .py source and store it with its outputs.

    python notebooks/execute.py        # or: make notebooks; about a minute

The .py file is the source; the .ipynb is made from it and never edited. Times, random cell ids and
versions are left out, so that running again changes what the results changed. A notebook that fails
or grows too large is not stored.
"""

import json
import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent
MAX_OUTPUT = 500_000  # bytes of the outputs of a notebook
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def sources(folder: Path = FOLDER) -> list[Path]:
    """The .py sources of the notebooks, in order."""
    return sorted(folder.glob("[0-9][0-9]_*.py"))


def build(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs; equal sources give equal notebooks."""
    notebook = jupytext.read(source, fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.from_dict(METADATA)
    # Cell ids came with 4.5; older readers of the format would drop them.
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path = FOLDER) -> nbformat.NotebookNode:
    """The notebook with the outputs of its cells, run in `folder`.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an exception.
    """
    # The tests' short setting must not get into a stored notebook.
    env = {name: value for name, value in os.environ.items() if name != "DEEPCLUST_FAST"}
    client = NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    notebook.metadata = nbformat.from_dict(METADATA)  # the kernel has added its version
    return notebook


def check_size(notebook: nbformat.NotebookNode, name: str) -> None:
    """Raise ValueError if the outputs take more than `MAX_OUTPUT` bytes."""
    size = sum(len(json.dumps(cell.get("outputs", []))) for cell in notebook.cells)
    if size > MAX_OUTPUT:
        raise ValueError(
            f"expected at most {MAX_OUTPUT} bytes of outputs in {name}, found {size}; "
            "print less or draw smaller pictures"
        )


def main() -> int:
    """Rebuild all notebooks; 0 if all went well, else 2 after one line on standard error."""
    for source in sources():
        target = source.with_suffix(".ipynb")
        notebook = run(build(source))
        try:
            check_size(notebook, target.name)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        nbformat.write(notebook, target)
        print(f"{target.name}: {len(notebook.cells)} cells, {target.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
