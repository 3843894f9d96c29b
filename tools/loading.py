"""The model of a tool: loaded offline, and without what the library says meanwhile."""

import os
from pathlib import Path
from typing import Any

from stages.common import models

MODEL = Path("models/merged")


def load(folder: Path) -> tuple[Any, Any]:
    """Model and tokenizer for inference; raises PipelineError when the folder is not a model."""
    models.require(folder)
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return models.load(folder)


def longest(model: Any) -> int:
    """Tokens that the model can read and write together."""
    return int(model.config.max_position_embeddings)
