"""Importing the runner where rrq is installed."""

from __future__ import annotations

import subprocess
import sys


def test_a_module_that_rrq_cannot_import_is_named(tmp_path):
    """If the runner took rrq for missing, it would refuse the settings objects of rrq."""
    (tmp_path / "rrq").mkdir()
    (tmp_path / "rrq" / "__init__.py").write_text("import absent_module")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import rrq_fastwire.runner.engine"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'absent_module'\n")
