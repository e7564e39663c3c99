"""Figures in a notebook: they leave matplotlib's backend alone, and pyplot knows none of them."""

import subprocess
import sys

SCRIPT = """
import sys
import matplotlib
matplotlib.use("svg")  # the user's
from pathlib import Path
import numpy as np, pandas as pd
from xor_study import figures
assert not any(name.startswith("xor_study.figures.") for name in sys.modules), "imported before it was asked for"
history = pd.DataFrame({"step": np.arange(1, 9), "epoch": np.repeat([1, 2], 4), "loss": np.linspace(1, 0, 8)})
figure = figures.loss_curve(history, "a run")
before = matplotlib.rcParams.copy()
figures.save(figure, Path(sys.argv[1]) / "loss")
assert "matplotlib.pyplot" not in sys.modules
assert not {"scipy.stats", "statsmodels"} & set(sys.modules)
assert matplotlib.get_backend() == "svg"
assert matplotlib.rcParams == before
import matplotlib.pyplot as plt
assert plt.get_fignums() == []
"""


def test_drawing_changes_nothing_of_matplotlib(tmp_path: object) -> None:
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True, timeout=120)
