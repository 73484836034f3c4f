"""The model card: what was trained on what, the figures, the configuration and the fingerprints, as Markdown."""

import json
from collections.abc import Mapping, Sequence

HEAD = "| step | questions | nll a token | P(gold) | unique passages | prior entropy |\n|---|---|---|---|---|---|\n"


def model_card(
    title: str,
    text: str,
    facts: Mapping[str, object],
    looks: Sequence[Mapping[str, float]],
    configuration: object,
) -> str:
    """A model card of a plan's text, `facts` by their names, the dev lines of metrics.jsonl and the configuration."""
    rows = "".join(
        f"| {look['step']} | {look['questions']} | {look['nll_per_token']:.3f} | {look['p_gold']:.3f} "
        f"| {look['unique']:.3f} | {look['prior_entropy']:.3f} |\n"
        for look in looks
    )
    figures = f"Dev set, after so many steps:\n\n{HEAD}{rows}" if rows else "No dev set: the last weights were kept.\n"
    listed = "".join(f"- {name}: {value}\n" for name, value in facts.items())
    return f"""---
library_name: ragx
tags: [retrieval-augmented-generation, question-answering]
---

# {title}

{text}.

{listed}
## Figures

{figures}
P(gold) is the prior's mass on gold documents, unique passages the share of retrieved passages that are distinct, prior
entropy in nats over the passages of a question. `ragx eval` scores answers.

## Configuration

```json
{json.dumps(configuration, indent=1, ensure_ascii=False)}
```
"""
