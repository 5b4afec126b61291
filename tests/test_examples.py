"""The examples run as they stand, the notebook on less data."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from warm import Warm

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
QUICK = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}


def test_the_loop_is_defended_in_three_lines(command: Warm, tmp_path: Path) -> None:
    """The hostile client is in no round's model, and the digits are learnt: in two rounds of the five."""
    source = (EXAMPLES / "defend_your_loop.py").read_text()
    assert source.count("# FLAME") == 3 and len([line for line in source.splitlines() if line.strip()]) <= 45
    assert "ROUNDS, TEST = 10, 5," in source
    (tmp_path / "loop.py").write_text(source.replace("ROUNDS, TEST = 10, 5,", "ROUNDS, TEST = 10, 2,"))
    done = command([str(tmp_path / "loop.py")], {**os.environ, **QUICK})
    assert done.returncode == 0, done.stderr
    found = re.findall(r"accepted \(([\d, ]+)\), accuracy (\S+)", done.stdout)
    assert len(found) == 2 and not [ids for ids, _ in found if "0" in ids.split(", ")]
    assert float(found[-1][1]) > 0.8


def test_the_guide(command: Warm, tmp_path: Path) -> None:
    """Its Python blocks, but for Flower's, in order, on five clients."""
    text = (ROOT / "docs/guides/library.md").read_text()
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "flwr" not in block]
    prelude = "import torch\nglobal_state = torch.nn.Linear(3, 2).state_dict()\nclient_states = [\n"
    prelude += "    {k: v + torch.randn(v.shape) for k, v in global_state.items()} for _ in range(5)\n]\n"
    (tmp_path / "guide.py").write_text(prelude + "\n".join(blocks) + "\nprint(outcome.ids, int(saved['round']))\n")
    done = command([str(tmp_path / "guide.py")], {**os.environ, **QUICK})
    assert done.returncode == 0 and done.stdout == "(17, 4, 8, 23, 42) 3\n", done.stderr


def test_the_notebook(command: Warm, tmp_path: Path) -> None:
    """All cells, one after the other, in a process of their own; no output is kept in the file."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    assert "ROUNDS, POISON = 3, " in source and '"engine=sequential"' in source
    less = source.replace("ROUNDS, POISON = 3, ", "ROUNDS, POISON = 1, ")
    less = less.replace('"engine=sequential"', '"engine=sequential", "train_samples=150"')
    (tmp_path / "notebook.py").write_text(less)
    done = command([str(tmp_path / "notebook.py")], {**os.environ, **QUICK}, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("five_shortest") == 2 and "multi_krum" in done.stdout
