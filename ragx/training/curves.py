"""The curves of a training as a picture."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

PANELS = {
    "nll_per_token": "-log p(answer | question), nats a token",
    "p_gold": "prior mass on gold documents",
    "unique": "distinct passages among those retrieved",
    "prior_entropy": "entropy of the prior, nats",
}
_STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def draw(metrics: Path) -> bytes:
    """The lines of metrics.jsonl as a PNG: training batches as a line, looks at the dev set as points."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9, 6), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            for split, style in (("train", "-"), ("dev", "o--")):
                rows = [line for line in lines if line["split"] == split]
                if rows:
                    axes.plot([row["step"] for row in rows], [row[name] for row in rows], style, label=split)
            axes.set_title(title)
            axes.set_xlabel("step")
            if lines:
                axes.legend(frameon=False)
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=100, metadata={"Software": None})
    return written.getvalue()
