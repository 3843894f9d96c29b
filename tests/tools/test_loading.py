"""The room of the tools: no stage leans on it, and `--help` does not wait for a model library."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.common.errors import PipelineError
from tools import loading


def test_no_stage_imports_a_tool() -> None:
    for path in sorted((ROOT / "stages").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "tools" for name in names), path


@pytest.mark.parametrize("tool", ["chat", "review"])
def test_help_comes_without_a_model_library(tool: str) -> None:
    code = (
        f"import sys; from tools import {tool}; "
        "heavy = {'torch', 'transformers', 'numpy', 'tree_sitter', 'huggingface_hub'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr.strip()) == ("", "")


def test_a_folder_that_is_no_model_is_refused() -> None:
    with pytest.raises(PipelineError, match=r"tests: no config\.json"):
        loading.load(ROOT / "tests")
