"""The code of the README runs as it is written, but for shorter training."""

import re
from pathlib import Path

import numpy as np

from deepclust_jax import profiles

README = Path(__file__).parent.parent / "README.md"
SHORTER = {
    "epochs=60": "epochs=1",
    "epochs=20": "epochs=1",
    "key(0), 5": "key(0), 2",
    "seeds=5": "seeds=2",
    'load("digits")': 'load("digits", limit=300)',
}


def test_python_of_the_readme(monkeypatch):
    text = README.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    code = "\n".join(blocks)
    for long, short in SHORTER.items():
        assert code.count(long) == 1, long
        code = code.replace(long, short)
    schedule = {"pretrain_epochs": 1, "epochs": 1}
    monkeypatch.setitem(
        profiles.PROFILES["practical"], "dcn", profiles.PROFILES["practical"]["dcn"] | schedule
    )
    monkeypatch.setattr(profiles, "LEAST_STEPS", dict.fromkeys(profiles.LEAST_STEPS, 1))
    names = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), names)
    z, clusters = names["z"], names["clusters"]
    assert z.shape == (2, 300, 10) and np.isfinite(z).all()
    assert clusters.shape == (2, 300) and len(np.unique(clusters)) > 1
    assert set(names["algorithm"]._fields) == {"init", "step", "refresh", "embed", "assign"}
