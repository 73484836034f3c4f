"""The order of design.md is the order of imports; third-party libraries have one home."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import ragx

ROOT = Path(ragx.__file__).parent
ORDER = """
errors records config.strict_yaml config.schema config artifacts models
corpus corpus.answers corpus.search corpus.streams corpus.files corpus.markdown corpus.tables
corpus.parsers corpus.parsers.serve corpus.parsers.pdf corpus.parsers.html corpus.parsers.docx corpus.parsers.parquet
corpus.sandbox corpus.scratch corpus.rejects corpus.readers corpus.passages corpus.duplicates corpus.questions
index index.encoder index.compiled index.vectors index.kinds index.words index.bm25 index.tfidf index.lexical
index.passages index.shards index.generations index.build index.estimate index.cluster index.store index.hf_dataset
rag rag.marginal rag.retriever
rag.prompts rag.lengths rag.state rag.head rag.packing rag.generator rag.causal rag.seq2seq rag.generators rag.rerank
rag.beams rag.decoding rag.model rag.interop training training.processes training.watch training.checkpoints
training.policy training.settings training.batches training.passes training.optimizer
training.synthetic training.warmup training.rerank training.refresh training.reading training.crossfit training.hits
training.loop training.estimate training.curves training.card evaluation evaluation.text evaluation.statistic
evaluation.matching evaluation.overlap evaluation.ranking evaluation.calibration evaluation.metrics
evaluation.significance evaluation.gates evaluation.predictions evaluation.survey evaluation.cache
evaluation.why evaluation.predict evaluation.report evaluation.seeds evaluation.plots evaluation.as_json
evaluation.as_markdown evaluation.as_junit evaluation.as_html evaluation.files
samples stages.models stages.corpus stages.index stages.synthetic stages.questions stages.warmup stages.tuned
stages.job stages.finetune stages.export stages.answer
stages.check stages.project stages
cli cli.common cli.init cli.check cli.index cli.finetune cli.ask cli.eval cli.export cli.main
__init__ __main__
""".split()  # noqa: SIM905 - it reads as the page does
HOMES = {
    "markdown_it": ("corpus.markdown",),
    "pypdf": ("corpus.parsers.pdf",),
    "trafilatura": ("corpus.parsers.html",),
    "mammoth": ("corpus.parsers.docx",),
    "pyarrow": ("corpus.parsers.parquet",),
    "backports": ("corpus.streams",),
    "faiss": ("index.",),
    "tantivy": ("index.",),
    "sentence_transformers": ("index.encoder", "index.compiled"),
    "openvino": ("index.compiled",),
    "transformers": ("models", "index.encoder", "index.compiled", "rag."),
    "huggingface_hub": ("models",),
    "datasets": ("index.hf_dataset",),
    "peft": ("rag.generator", "rag.generators"),
    "accelerate": ("training.",),
    "ahocorasick_rs": ("corpus.search",),
    "ir_measures": ("evaluation.ranking",),
    "rouge_score": ("evaluation.overlap",),
    "sacrebleu": ("evaluation.overlap",),
    "junitparser": ("evaluation.as_junit",),
    "jinja2": ("evaluation.as_html", "rag.prompts"),
    "matplotlib": ("evaluation.plots", "training.curves"),
    "scipy": ("evaluation.significance", "index.tfidf"),
    "sklearn": ("index.tfidf",),
    "ray": ("index.cluster",),
    "pydantic": ("config.schema",),
    "yaml": ("config.strict_yaml",),
    "typer": ("cli.",),
    "rich": ("cli.",),
}
LATE = {
    "cli.ask": {"readline"},
    "corpus.streams": {"backports", "compression"},  # by version of Python
    "__main__": {"ragx.cli.main"},  # what cannot be imported there must not look like a failed gate
}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def name_of(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name if name == "__init__" else name.removesuffix(".__init__")


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def imports(tree, nodes=None):
    """The modules that statements import: `from ragx.rag import model` counts as ragx.rag.model where that exists."""
    for node in ast.walk(tree) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("ragx.") in MODULES else node.module


def ours(names):
    return [
        name.removeprefix("ragx.") if name != "ragx" else "__init__" for name in names if name.split(".")[0] == "ragx"
    ]


def is_at_home(module, homes):
    return any(module == home or (home.endswith(".") and module.startswith(home)) for home in homes)


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_stands_above_it(module):
    below = [
        name
        for name in ours(imports(MODULES[module], MODULES[module].body))
        if ORDER.index(name) >= ORDER.index(module)
    ]
    assert not below


@pytest.mark.parametrize("module", MODULES)
def test_late_imports_only_in_stages(module):
    tree = MODULES[module]
    late = set(imports(tree)) - set(imports(tree, tree.body))
    if module.partition(".")[0] == "stages":
        below = [name for name in ours(late) if ORDER.index(name) >= ORDER.index("samples")]
        assert not below
    else:
        assert late <= LATE.get(module, set())


@pytest.mark.parametrize("library", HOMES)
def test_one_home_for_each_library(library):
    users = [module for module, tree in MODULES.items() if library in {name.split(".")[0] for name in imports(tree)}]
    assert users, "nobody uses it"
    assert [module for module in users if not is_at_home(module, HOMES[library])] == []


@pytest.mark.parametrize("module", MODULES)
def test_nothing_that_unpickles(module):
    assert not FORBIDDEN & {name.split(".")[0] for name in imports(MODULES[module])}


@pytest.mark.parametrize("module", MODULES)
def test_torch_load_reads_only_tensors(module):
    calls = [node for node in ast.walk(MODULES[module]) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert all("weights_only=True" in ast.unparse(call) for call in loads)


def test_every_library_imported_is_a_declared_dependency():
    project = ROOT.parent / "pyproject.toml"
    if not project.is_file():
        pytest.skip("not a source tree")
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = {name: lines for name, lines in table["optional-dependencies"].items() if name != "dev"}
    listed = [*table["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {line.split(">")[0].strip().lower().replace("_", "-") for line in listed}
    used = {name.split(".")[0] for tree in MODULES.values() for name in imports(tree)}
    foreign = used - set(sys.stdlib_module_names) - {"ragx", "compression"}
    homes = packages_distributions()
    missing = [
        name
        for name in sorted(foreign)
        if not declared & {d.lower().replace("_", "-") for d in homes.get(name, [name])}
    ]
    assert not missing
