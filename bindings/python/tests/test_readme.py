"""The README's programs run as they are printed, one after another."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) >= 3
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "[(" in capsys.readouterr().out and (names["x_hat"].shape, names["stats"].step) == ((256, 16), 50)


def test_the_docstring_names_what_there_is():
    import libsae

    for name in re.findall(r"libsae\.(\w+)", libsae.__doc__):
        assert hasattr(libsae, name) or name in ("torch", "vllm", "nnsight"), name


def test_numpy_is_enough():
    program = "import libsae, sys; assert not {'torch', 'nnsight', 'ml_dtypes', 'typing_extensions'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
