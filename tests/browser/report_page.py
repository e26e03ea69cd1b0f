"""The page as a browser shows it: every part renders, search, folding and links work, no console
error, nothing asked of the network, and a training step of GPT-2 opens in seconds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from browser.devtools import Browser, chromium
from rewright.page import page
from rewright.record import Record, record_of
from test_page import HOSTILE, compiled, layers

FOUND: Final = chromium()
pytestmark = pytest.mark.skipif(
    FOUND is None, reason="there is no chromium: apt-get install chromium"
)

PARTS: Final = ("overview", "graph", "memory", "kernels", "decisions", "sources")
SECONDS: Final = 3.0  # in which a page of thousands of nodes can be used
IMAGES: Final = Path(__file__).resolve().parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert FOUND is not None
    opened = Browser(FOUND, 1400, 880)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def no_complaints(browser: Browser) -> Iterator[None]:
    """Whatever a test does, the console stays empty, and only the page itself is loaded."""
    yield
    assert browser.complaints() == []
    asked = [url for url in browser.requests() if url != "about:blank"]
    assert all(url.startswith(("file://", "data:,")) for url in asked)
    assert len({url.partition("#")[0] for url in asked if url.startswith("file:")}) <= 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def stack(folder: Path) -> tuple[Path, Record]:
    """Eight equal layers."""
    return written(folder / "stack.html", compiled(layers(8)))


@pytest.fixture(scope="module")
def training(folder: Path) -> tuple[Path, Record]:
    """Forward and backward of GPT-2 with its twelve layers, in one graph, for a CPU that all
    machines know."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    from examples.huggingface import gpt2
    from rewright.driver import plan_graph
    from rewright.ir import Graph
    from rewright.ir.fx_import import from_fx
    from rewright.joint import with_joint
    from rewright.options import Options

    model, (ids,) = gpt2(1, 64)
    model.train()
    found: list[Graph] = []

    def see(part: Any, joint: Any, given: Any, **more: Any) -> None:
        with unset_fake_temporarily():
            found.append(from_fx(joint, name="gpt2-training"))

    with_joint(lambda x: model(x).logsumexp(-1).mean(), (ids,), Options(), see)
    planned = plan_graph(found[0], Options.of({"target": "cpu:avx512"}))
    return written(folder / "training.html", record_of(planned))


def written(path: Path, record: Record) -> tuple[Path, Record]:
    path.write_text(page(record), encoding="utf-8")
    return path, record


def show(browser: Browser, part: str) -> None:
    browser.run(f"document.querySelector('[data-tab={part}]').click()")
    browser.settle()


def text_of(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)})?.textContent ?? ''"))


def counts(browser: Browser) -> list[dict[str, int]]:
    """What each pane says that it draws."""
    found = browser.run("[...document.querySelectorAll('.pane')].map((p) => ({...p.dataset}))")
    return [{name: int(value) for name, value in pane.items()} for pane in found]


def press_button(browser: Browser, label: str) -> None:
    named = f"(b) => b.textContent === {json.dumps(label)}"
    browser.run(f"[...document.querySelectorAll('#graph button')].find({named}).click()")
    browser.settle()


def place(browser: Browser, pane: int, item: str) -> tuple[float, float, float, float]:
    """Where an item of a pane's tree, a JavaScript expression of the pane, is on the screen."""
    box = browser.run(
        f"""(() => {{
            const pane = report.tab("graph").panes[{pane}], {{ camera, canvas }} = pane;
            const {{ x, y, w, h }} = pane.placeOf({item}), at = canvas.getBoundingClientRect();
            const s = camera.scale;
            return [at.left + (x - camera.x) * s, at.top + (y - camera.y) * s, w * s, h * s];
        }})()"""
    )
    left, top, width, height = box
    return left, top, width, height


def click_item(browser: Browser, pane: int, item: str) -> None:
    left, top, width, height = place(browser, pane, item)
    browser.click(left + width / 2, top + min(height / 2, 8))


# --- all parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_part_renders(
    browser: Browser, stack: tuple[Path, Record], part: str, theme: str
) -> None:
    scheme = {"name": "prefers-color-scheme", "value": theme}
    browser.send("Emulation.setEmulatedMedia", features=[scheme])
    browser.open(stack[0], part)
    assert browser.run(f"document.getElementById('{part}').getBoundingClientRect().height") > 500
    assert len(text_of(browser, f"#{part}")) > 100
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(250, 250, 248)", "dark": "rgb(20, 23, 27)"}[theme]


def test_the_graph_is_drawn(browser: Browser, stack: tuple[Path, Record]) -> None:
    """Many colours on both canvases: ground, boxes, lines, letters."""
    browser.open(stack[0], "graph")
    colours = browser.run(
        """[...document.querySelectorAll(".pane canvas")].map((canvas) => {
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return new Set(new Uint32Array(data.buffer)).size;
        })"""
    )
    assert min(colours) > 50


# --- the graph ------------------------------------------------------------------------------------


def test_search_steps_through_matches(browser: Browser, stack: tuple[Path, Record]) -> None:
    browser.open(stack[0])
    browser.press("/")
    browser.type("gelu")
    assert text_of(browser, "#graph .tally") == "1 of 16"  # eight before, eight after
    assert text_of(browser, "#graph .details h3") == "aten.gelu.default"
    assert text_of(browser, "#graph .details dt") == "%g0"
    browser.press("Enter")
    assert text_of(browser, "#graph .tally") == "2 of 16"
    assert text_of(browser, "#graph .details dt") == "%g1"
    browser.press("Enter", shift=True)
    assert text_of(browser, "#graph .details dt") == "%g0"
    browser.press("Escape")
    assert text_of(browser, "#graph .tally") == ""


@pytest.mark.parametrize(("words", "found"), [("block.py:22", 16), ("%m3", 2), ("nothing", 0)])
def test_search_finds_names_and_source_lines(
    browser: Browser, stack: tuple[Path, Record], words: str, found: int
) -> None:
    browser.open(stack[0])
    browser.press("/")
    browser.type(words)
    tally = browser.run("Number(document.querySelector('#graph .tally').dataset.count)")
    assert tally == found


def test_blocks_unfold_and_fold(browser: Browser, stack: tuple[Path, Record]) -> None:
    browser.open(stack[0], "graph")
    before = counts(browser)[0]
    assert before == {"boxes": 9, "nodes": 48, "folded": 8}  # and the input
    block = "pane.tree.root.children.filter((c) => c.type === 'block')[2]"
    click_item(browser, 0, block)
    assert counts(browser)[0] == {"boxes": 14, "nodes": 48, "folded": 7}
    assert "h.2" in text_of(browser, "#graph .details")
    click_item(browser, 0, block)  # its head
    assert counts(browser)[0] == before
    press_button(browser, "Unfold all")
    assert counts(browser)[0] == {"boxes": 49, "nodes": 48, "folded": 0}
    press_button(browser, "Fold all")
    assert counts(browser)[0] == before


def test_a_click_shows_a_node_and_the_same_on_the_other_side(
    browser: Browser, stack: tuple[Path, Record]
) -> None:
    browser.open(stack[0], "graph")
    press_button(browser, "Unfold all")
    click_item(browser, 0, "pane.tree.itemOf.get(pane.stage.byName.get('n0')[0])")
    shown = text_of(browser, "#graph aside")
    assert "aten.sin.default" in shown and "f32[4, 8]" in shown and "block.py:10" in shown
    assert "In the graph after memory" in shown
    chosen = browser.run("report.tab('graph').panes.map((pane) => pane.selected?.name)")
    assert chosen == ["n0", "n0"]


def test_what_leads_from_a_node_to_its_kernel_and_back(
    browser: Browser, stack: tuple[Path, Record]
) -> None:
    path, record = stack
    kernel = next(k for k in record.report.kernels if k.function)
    browser.open(path, "graph")
    browser.press("/")
    browser.type(kernel.nodes[-1])
    browser.run("document.querySelector('#graph .place button').click()")
    browser.settle()
    assert browser.run("document.querySelector('.row.open').dataset.kernel") == kernel.name
    browser.run("document.querySelector('.kerneldetail button').click()")
    browser.settle()
    assert not browser.run("document.getElementById('graph').hidden")
    assert text_of(browser, "#graph .details h3") == "Kernel"
    show(browser, "kernels")
    browser.run("document.querySelectorAll('.kerneldetail button')[1].click()")
    browser.settle()
    assert browser.run("document.querySelectorAll('#sources .seek').length") == 1


# --- other parts ----------------------------------------------------------------------------------


def test_memory_says_what_is_alive(browser: Browser, stack: tuple[Path, Record]) -> None:
    path, record = stack
    browser.open(path, "memory")
    box = browser.run(
        "(({left, top, width, height}) => [left, top, width, height])"
        "(document.querySelector('[data-series=after] svg').getBoundingClientRect())"
    )
    left, top, width, height = box
    calls = len(record.report.kernels)
    at = calls // 2
    browser.hover(left + 64 + (width - 12 - 64) * (at + 0.5) / calls, top + height / 2)
    assert f"at call {at + 1}" in text_of(browser, ".live h2")
    alive = [b for b in record.report.buffers if b.first <= at <= b.last]
    shown = browser.run("document.querySelectorAll('.liverow').length")
    assert shown == len(alive) > 0


@pytest.mark.parametrize(("budget", "said"), [(1 << 40, "kept"), (1, "broken")])
def test_a_budget_is_a_line_and_a_sentence(
    browser: Browser, stack: tuple[Path, Record], folder: Path, budget: int, said: str
) -> None:
    _, record = stack
    memory = replace(record.report.memory, budget_bytes=budget)
    within = replace(record, report=replace(record.report, memory=memory))
    browser.open(written(folder / f"{said}.html", within)[0])
    assert said in browser.run("document.querySelector('.budget').className")
    show(browser, "memory")
    assert browser.run("document.querySelectorAll('.budgetline').length") == 2


def test_calls_sort_and_are_on_the_roofline(browser: Browser, stack: tuple[Path, Record]) -> None:
    path, record = stack
    browser.open(path, "kernels")
    counted = sum(kernel.flops > 0 for kernel in record.report.kernels)
    assert browser.run("document.querySelectorAll('.point').length") == counted > 0
    listed = (
        "[...document.querySelectorAll('#kernels .row[data-row]')].map((r) => r.dataset.kernel)"
    )
    order = browser.run(listed)
    assert sorted(order) == sorted(k.name for k in record.report.kernels)
    browser.run("document.querySelector('#kernels .head button').click()")
    browser.settle()
    sorted_by_number = browser.run(listed)
    assert sorted_by_number == [k.name for k in reversed(record.report.kernels)]


def test_a_click_on_a_pass_shows_its_decisions(
    browser: Browser, stack: tuple[Path, Record]
) -> None:
    path, record = stack
    browser.open(path)
    browser.run("document.querySelector('#passes tr[data-pass=fuse]').click()")
    browser.settle()
    said = [d for d in record.report.decisions if d.pass_ == "fuse"]
    assert browser.run("Number(document.querySelector('#decisions .tally').dataset.count)") == len(
        said
    )
    assert said[0].sentence in text_of(browser, "#decisions .decision .sentence")


def test_a_stage_stands_there_as_text(browser: Browser, stack: tuple[Path, Record]) -> None:
    path, record = stack
    browser.open(path, "sources")
    browser.run("[...document.querySelectorAll('.files button')].at(-1).click()")
    browser.settle()
    pieces = "[...document.querySelectorAll('.code pre:not(.lines)')].map((p) => p.textContent)"
    assert "\n".join(browser.run(pieces)) == str(record.graph)


def test_a_graph_of_nothing_has_a_page(browser: Browser, folder: Path) -> None:
    nothing = compiled("rewright 1\ngraph f(%x: f32[4]) {\n  return %x\n}")
    browser.open(written(folder / "nothing.html", nothing)[0])
    for part in PARTS:
        show(browser, part)
        assert browser.run(f"document.getElementById('{part}').hidden") is False


def test_names_are_text(browser: Browser, folder: Path) -> None:
    """In all parts, whatever a model calls its values, files and itself."""
    quoted = json.dumps(HOSTILE)
    made = compiled(
        f"""rewright 1
graph {quoted}(%{quoted}: f32[4]) {{
  %a = aten.sin.default(%{quoted}) : f32[4] @ {quoted}:7
  %{json.dumps(HOSTILE + "2")} = aten.exp.default(%a) : f32[4] @ {quoted}:8
  return %{json.dumps(HOSTILE + "2")}
}}"""
    )
    browser.open(written(folder / "hostile.html", made)[0])
    assert text_of(browser, "h1") == HOSTILE
    for part in PARTS:
        show(browser, part)
    browser.press("/")
    browser.type("onerror")
    assert browser.run("document.querySelectorAll('img, main script, iframe').length") == 0


# --- GPT-2 training -------------------------------------------------------------------------------


def test_a_training_step_opens_in_seconds(browser: Browser, training: tuple[Path, Record]) -> None:
    path, record = training
    assert len(record.source.nodes) > 1500
    opened = browser.open(path, "graph") / 1000
    assert opened <= SECONDS
    assert [pane["folded"] >= 20 for pane in counts(browser)] == [True, True]
    assert sum(pane["nodes"] for pane in counts(browser)) > 3000
    browser.press("/")
    browser.type("native_layer_norm_backward")
    assert text_of(browser, "#graph .tally").startswith("1 of ")
    print(f"opened in {opened:.2f} s, {path.stat().st_size / 1024:.0f} KiB")


def test_thousands_of_nodes_stay_fluid(browser: Browser, training: tuple[Path, Record]) -> None:
    """All unfolded, zooming from all of it into its middle."""
    browser.open(training[0], "graph")
    press_button(browser, "Unfold all")
    press_button(browser, "Fit")
    assert sum(pane["boxes"] for pane in counts(browser)) > 3000
    frames = browser.run(
        """(async () => {
            const canvas = document.querySelector(".pane canvas"), frames = [];
            const frame = () => new Promise(requestAnimationFrame);
            let last = await frame();
            for (let step = 0; step < 60; step++) {
                const at = { clientX: 300, clientY: 400, deltaY: -60, bubbles: true };
                canvas.dispatchEvent(new WheelEvent("wheel", { ...at, cancelable: true }));
                const now = await frame();
                frames.push(now - last);
                last = now;
            }
            return frames;
        })()"""
    )
    typical = sorted(frames)[len(frames) // 2]
    assert typical <= 50, "fewer than 20 frames a second"
    print(f"a frame in {typical:.0f} ms, {max(frames):.0f} ms at the most")


# --- the pictures of the documentation ------------------------------------------------------------


@pytest.mark.skipif(
    os.environ.get("UPDATE_IMAGES") != "1", reason="UPDATE_IMAGES=1 takes the pictures of docs/"
)
def test_pictures(browser: Browser, training: tuple[Path, Record]) -> None:
    IMAGES.mkdir(exist_ok=True)
    scheme = {"name": "prefers-color-scheme", "value": "light"}
    browser.send("Emulation.setEmulatedMedia", features=[scheme])
    browser.resize(1180, 720)
    browser.open(training[0], "graph")
    browser.press("/")
    browser.type("tanh_backward")
    for name in ("graph", "memory", "kernels"):
        show(browser, name)
        browser.settle(1)
        (IMAGES / f"report-{name}.png").write_bytes(browser.picture())
        assert (IMAGES / f"report-{name}.png").stat().st_size < 200_000
