"""The card of a model: what it is, what it was trained on and what it scores; and its folder on the hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmlkd.errors import UserError
from dmlkd.models import EmbeddingModel
from dmlkd.models.saved import model_folder

_HEAD = """\
---
library_name: dmlkd
license: mit
pipeline_tag: image-feature-extraction
tags:
- metric-learning
- image-retrieval
- self-distillation
---

# Embedding model

Images in, {dim} numbers of unit length out, alike where the images show the same class: also classes it never saw.

```python
from dmlkd import EmbeddingModel

model = EmbeddingModel.from_pretrained("this folder, or its name on the hub")
z = model.embed(["photo.jpg"])
```
"""


def model_card(model: EmbeddingModel, metrics: Mapping[str, Any], config: str) -> str:
    """The card of a trained model, in Markdown with the hub's header.

    Args:
        model: it.
        metrics: what ``metrics.json`` of its run holds.
        config: the run's configuration, as YAML.
    """
    data = metrics["data"]
    lines = [_HEAD.format(dim=model.dim)]
    if model.exit_stage is not None:
        lines += [f"An exit after stage {model.exit_stage} (from 0) of a larger network, trained with it.", ""]
    lines += ["## Data", "", "| split | images | classes |", "|---|---|---|"]
    for name in ("train", "val", "test"):
        if name in data:
            lines.append(f"| {name} | {data[name]['images']:,} | {data[name]['classes']:,} |")
    lines += ["", "No class of the test images was trained on."]
    rows = {"this model": metrics["test"], **{f"baseline: {n}": scores for n, scores in metrics["baselines"].items()}}
    names = list(metrics["test"])
    lines += [
        "",
        "## Retrieval on the test images, in %",
        "",
        f"| | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for label, scores in rows.items():
        lines.append(f"| {label} | {' | '.join(f'{100 * scores[name]:.2f}' for name in names)} |")
    epoch = metrics["epoch"]
    how = "chosen on validation classes" if epoch["reported"] == "best" else "the last, none was chosen"
    lines += ["", f"Epoch {epoch[epoch['reported']]} (from 0; {how}), seed {metrics['seed']}."]
    versions = ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())
    lines += ["", "## Configuration", "", "```yaml", config.rstrip(), "```", "", f"Made with {versions}.", ""]
    return "\n".join(lines)


def push_folder(folder: Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model's folder as it is, its card and preparation included, to the Hugging Face hub.

    Args:
        folder: of a saved model, or of its run.
        name: such as "owner/model".
        private: whether others may not see it.
        token: of the hub; None: the one that is logged in.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the folder holds no model, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    place = model_folder(folder)
    api = HfApi(token=token)
    try:
        full = api.create_repo(name, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=full, folder_path=place))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{folder} cannot be uploaded as {name}: {' '.join(str(error).split())[:200]}") from None
