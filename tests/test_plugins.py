"""The plugin in `examples/plugin`, installed away from here: Rewright finds what it adds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rewright.ir import plugins

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    source = tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(ROOT / "examples" / "plugin", source)
    subprocess.run([*pip, "--target", str(target), str(source)], check=True)
    return target


def run(script: str, installed: Path | None, tmp_path: Path) -> str:
    path = os.environ.get("PYTHONPATH", "")
    if installed is not None:
        path = f"{installed}{os.pathsep}{path}"
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-W", "always", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


FUSED = """
import torch, rewright
from rewright_softclip import softclip

def f(x):
    return softclip(x * 2, 3.0).exp()

x = torch.linspace(-9, 9, 1000).requires_grad_()
expected = f(x); expected.sum().backward(); wanted = x.grad; x.grad = None
ours = torch.compile(f, backend="rewright", options={"fallback": "error"}, fullgraph=True)
found = ours(x); found.sum().backward()
torch.testing.assert_close(found, expected); torch.testing.assert_close(x.grad, wanted)
(forward, backward) = rewright.programs()
print([node.op.name for node in forward.graph.nodes if node.op.name != "rw.free"])
"""


def test_an_operator_of_a_plugin_is_fused_and_differentiated(
    installed: Path, tmp_path: Path
) -> None:
    assert run(FUSED, installed, tmp_path).strip() == "['rw.fused']"


LISTED = """
import torch, rewright
from rewright_softclip import softclip

def f(x):
    return softclip(-x, 3.0) + softclip(x, 2.0)

passes = "canonicalize,rules,softclip-count{most=1},fuse,memory"
ours = torch.compile(f, backend="rewright", options={"passes": passes, "rules": ("softclip",)})
x = torch.randn(100)
torch.testing.assert_close(ours(x), f(x))
for d in rewright.programs()[0].plan.log:
    if "softclip" in d.sentence or d.pass_ == "softclip-count":
        print(d.pass_, d.sentence)
"""


def test_a_set_of_rules_and_a_pass_of_a_plugin_can_be_asked_for(
    installed: Path, tmp_path: Path
) -> None:
    said = run(LISTED, installed, tmp_path).splitlines()
    assert "rules softclip-of-neg" in said
    assert "softclip-count is one of 2 soft clips" in said


TEXT = """
from rewright.ir.parse import parse
print(parse('''graph f(%x: f32[4]) {
  %y = softclip.softclip.default(%x, 2.0) : f32[4]
  return %y
}''').nodes[0].op.kind.value)
"""


def test_a_graph_as_text_may_name_an_operator_of_a_plugin(installed: Path, tmp_path: Path) -> None:
    assert run(TEXT, installed, tmp_path).strip() == "pointwise"


UNKNOWN = """
from rewright.passes import Pass
from rewright.ir import RewrightError
try:
    Pass.parse("softclip-count")
except RewrightError as error:
    print(error)
"""


def test_what_is_not_installed_is_not_known(tmp_path: Path) -> None:
    assert "no pass named 'softclip-count'" in run(UNKNOWN, None, tmp_path)


class Broken:
    name, dist = "broken", None

    def load(self) -> object:
        raise ImportError("no module named nowhere")


def test_a_plugin_that_cannot_be_loaded_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_declared", lambda kind: (Broken(),))
    plugins.plugins.cache_clear()
    try:
        with pytest.warns(UserWarning, match="plugin 'broken' cannot be loaded: no module named"):
            assert plugins.plugins("passes") == {}
        assert plugins.versions() == [f"{kind} 'broken'" for kind in plugins.KINDS]
    finally:
        plugins.plugins.cache_clear()
