"""ragx: carry a pretrained RAG model over to your own documents.

Five calls mirror the command line: `load_config`, `build_index`, `finetune`, `ask`, `evaluate`.
"""

from ragx.config import load_config
from ragx.stages import ask, build_index, evaluate, finetune

__all__ = ["ask", "build_index", "evaluate", "finetune", "load_config"]
