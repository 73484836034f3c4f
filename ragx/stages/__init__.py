"""Config -> artefacts: what each command does, from configuration to files.

The only modules with late imports: torch and its company are loaded when a stage runs, not when ragx is imported.
"""

from ragx.stages.answer import Answerer, ask, evaluate, report_json
from ragx.stages.check import check
from ragx.stages.export import export
from ragx.stages.finetune import finetune
from ragx.stages.index import build_index, build_index_part, index_stats, merge_index
from ragx.stages.project import init

__all__ = [
    "Answerer",
    "ask",
    "build_index",
    "build_index_part",
    "check",
    "evaluate",
    "export",
    "finetune",
    "index_stats",
    "init",
    "merge_index",
    "report_json",
]
