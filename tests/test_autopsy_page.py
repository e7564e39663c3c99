"""The page and the JSON of an autopsy's report: what they hold, and how they look."""

import html
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

from xor_study.autopsy import Report, StepSummary, autopsy
from xor_study.autopsy.drawings import curve

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Norm(nn.Module):
    """Has a finite output but a gradient of NaN at 0."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the length of x, shape (); x of shape (n,)."""
        length = x.square().sum().sqrt()
        return torch.where(length > 0, length, 0 * length)  # <not> a "tag" & no entity


def failing(**options: object) -> Report:
    """Return the report of three steps, the second of which makes NaN in its backward."""
    net, weight = Norm(), torch.ones(3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], 0.0)
    with autopsy(**options) as report:  # type: ignore[arg-type]
        for step in range(3):
            optimizer.zero_grad()
            loss = net(weight * (0.0 if step == 1 else 10.0**step))
            loss.backward()
            optimizer.step()
    return report


class Reader(HTMLParser):
    """Collects a page's text and tags, and checks that each tag is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag as open."""
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that it is the innermost one."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep a piece of text."""
        self.text.append(data)


def test_the_page_stands_alone(tmp_path: Path) -> None:
    failing().write_html(tmp_path / "page.html", title="Autopsy of <train>.py")
    page = (tmp_path / "page.html").read_text()
    reader = Reader(page)
    assert reader.open == []
    assert ("meta", {"charset": "utf-8"}) in reader.tags
    assert "<title>Autopsy of &lt;train&gt;.py</title>" in page
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in reader.tags}
    addresses = re.findall(r"https?://(?!github.com/pytorch)[^\"' ]+", page)  # that is the source of advice, as text
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # the name of SVG, which nothing loads


def test_the_page_has_all_that_the_story_says(tmp_path: Path) -> None:
    report = failing()
    assert report.first is not None
    text = "".join(Reader(report._repr_html_()).text)
    assert report.story in text
    culprit = report.first.code
    assert culprit == "length = x.square().sum().sqrt()"
    lines = Path(__file__).read_text().splitlines()[report.first.lineno - 4 : report.first.lineno + 3]  # type: ignore[operator]
    for line in lines:
        assert line in text
    (marked,) = re.findall(r'<span class="line culprit"><i>(\d+)</i>(.*?)</span>', report._repr_html_())
    assert (int(marked[0]), html.unescape(re.sub("<.*?>", "", marked[1])).strip()) == (report.first.lineno, culprit)
    for name, _ in report.first.path:
        assert name in text
    assert f"reached: {', '.join(report.first.reached)}" in text
    assert "nan" in re.findall(r'<td class="bad">(.*?)</td>', report._repr_html_())


def test_a_call_is_underlined_where_it_stands(tmp_path: Path) -> None:
    with autopsy() as report:
        torch.nan_to_num(torch.zeros(2)).log().sum().item()  # äöü before, and <after>
    (underlined,) = re.findall("<b>(.*?)</b>", report._repr_html_())
    assert underlined == "torch.nan_to_num(torch.zeros(2)).log()"


def test_a_healthy_report_is_a_page_too(tmp_path: Path) -> None:
    with autopsy() as report:
        torch.ones(2).log()
    report.note("a <note>")
    reader = Reader(report._repr_html_())
    assert reader.open == []
    assert "Nothing went wrong in 2 operations." in reader.text
    assert "a <note>" in reader.text
    assert "svg" not in {tag for tag, _ in reader.tags}


@pytest.mark.parametrize(
    "options", [{"checks": "batched"}, {"near_misses": True}, {"lint": True}, {"allow": ["aten.div"]}]
)
def test_every_kind_of_report_is_a_page(options: dict[str, object]) -> None:
    assert Reader(failing(**options)._repr_html_()).open == []


def test_a_file_that_changed_shows_the_line_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "changing.py"
    source.write_text("import torch\ntorch.zeros(1).log().item()\n")
    with autopsy() as report:
        exec(compile(source.read_text(), str(source), "exec"))
        _ = report.story
    assert report.first is not None
    assert report.first.code == "torch.zeros(1).log().item()"
    source.write_text("import torch\n\n\nother = 'line'\n")
    import linecache

    linecache.checkcache()
    page = report._repr_html_()
    assert "torch.zeros(1)</b>" not in page
    assert 'culprit"><i>2</i><b>torch.zeros(1).log()</b>.item()</span></pre>' in page


def test_json_says_what_is_not_finite_in_words(tmp_path: Path) -> None:
    report = failing()
    report.write_json(tmp_path / "report.json")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    values = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert values["story"] == report.story
    norms = [step["gradient_norm"] for step in values["history"]]
    assert norms == [pytest.approx(1), "nan", "nan"]
    assert values["events"][0]["outputs"][0]["offending"][0] == "nan"
    assert values["events"][0]["source"]["lineno"] == report.first.lineno  # type: ignore[union-attr]
    assert values.keys() == {"story"} | report.as_dict().keys()


# --- the curves ------------------------------------------------------------------------------------------------------


def heights(drawing: str) -> list[float]:
    """Return the y of each point, 0 at the top."""
    root = ElementTree.fromstring(drawing)
    return [float(circle.attrib["cy"]) for circle in root.iter("{http://www.w3.org/2000/svg}circle")]


def test_a_curve_is_linear_or_logarithmic() -> None:
    low, middle, high = heights(curve("Loss", [(1, 1.0), (2, 2.0), (3, 3.0)], None))
    assert (low - middle) == pytest.approx(middle - high)
    low, middle, high = heights(curve("Loss", [(1, 1e-3), (2, 1.0), (3, 1e3)], None))
    assert (low - middle) == pytest.approx(middle - high)
    low, middle, high = heights(curve("Loss", [(1, -1e3), (2, 0.0), (3, 1e3)], None))
    assert (low - middle) == pytest.approx(middle - high)
    assert low > high


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [2.0, 2.0],
        [math.nan],
        [math.inf, -math.inf],
        [0.0, 1e300],
        [-1.7e308, 1.7e308],
        [5e-324, 1.7e308],
        [1.0, math.nan, 2.0, math.inf],
    ],
)
def test_any_values_stay_in_the_picture(values: list[float]) -> None:
    drawing = curve("Loss", list(enumerate(values, 1)), 1)
    assert len(heights(drawing)) == sum(map(math.isfinite, values))
    assert all(0 < y < 160 for y in heights(drawing))
    assert drawing.count('class="cross"') == sum(not math.isfinite(value) for value in values)
    assert not re.search(r'="[^"]*nan[^"]*"', re.sub(r'aria-label=".*?"', "", drawing))


def test_a_curve_has_a_gap_where_it_is_not_finite() -> None:
    values = [1.0, 2.0, math.nan, 3.0, math.nan, 4.0, 5.0, 6.0]
    lines = re.findall(r'points="(.*?)"', curve("Loss", list(enumerate(values)), None))
    assert [len(line.split()) for line in lines] == [2, 3]


def test_what_is_not_finite_in_a_row_is_named_once() -> None:
    values = [1.0, math.nan, math.nan, math.inf, 2.0, math.inf]
    assert re.findall(r">(NaN|inf)</text>", curve("Loss", list(enumerate(values)), None)) == ["NaN", "inf", "inf"]


def test_the_largest_activation_of_a_step_is_nan_if_one_is(tmp_path: Path) -> None:
    with autopsy() as report:
        torch.ones(1).log()
    report.history.append(StepSummary(1, largest={"a": 3.0, "b": math.nan, "c": 5.0}))
    assert "step 1: nan" in report._repr_html_()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian's package chromium)")
@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window(tmp_path: Path, width: int) -> None:
    """A phone's page must not scroll sideways as a whole; tables and code scroll in themselves."""
    failing().write_html(tmp_path / "page.html")
    # A headless window can't be narrower than 500 pixels, but a frame can.
    measure = f"""<iframe src="page.html" width="{width}" height="900" onload="
        const page = contentDocument.documentElement;
        document.body.textContent = JSON.stringify([page.scrollWidth, page.clientWidth])"></iframe>"""
    (tmp_path / "measure.html").write_text(f"<!DOCTYPE html><body>{measure}</body>")
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --virtual-time-budget=5000 --dump-dom"
    flags += f" --user-data-dir={tmp_path / 'profile'} {(tmp_path / 'measure.html').as_uri()}"
    done = subprocess.run([str(CHROMIUM), *flags.split()], capture_output=True, text=True, timeout=120, check=True)
    (found,) = re.findall(r"<body>(\[.*?\])</body>", done.stdout)
    wide, window = json.loads(found)
    assert width - 20 <= window <= width  # a scroll bar may take some
    assert wide == window
