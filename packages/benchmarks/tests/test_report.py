import re
from dataclasses import replace

from mimo_benchmarks import report
from mimo_benchmarks.report import Row

SUPERPOSED = Row(model="MIMOConv", n=1, accuracy=0.98, images_per_second=1e4, speedup=1, macs=3.166e6, superposed=True)
ROWS = [
    SUPERPOSED,
    replace(SUPERPOSED, n=4, accuracy=0.955, images_per_second=4e4, speedup=4, macs=8.56e5),
    replace(SUPERPOSED, model="plain <CNN>", accuracy=0.99, images_per_second=3e4, speedup=3, macs=8.66e5, superposed=False),
]


def test_table_is_aligned_markdown():
    lines = report.table(ROWS).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(report.COLUMNS)
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == ["MIMOConv", "4", "95.50%", "40,000", "4.00x", "0.856 M"]
    assert re.fullmatch(r"\| -+ \|( -+: \|){5}", lines[1])


def test_verdict_names_the_winner():
    assert "a smaller plain network does as well" in report.verdict(ROWS)
    assert "99.00% against 95.50%" in report.verdict(ROWS)
    lost = [*ROWS[:2], replace(ROWS[2], accuracy=0.9)]
    assert "does as well" not in report.verdict(lost)
    assert "90.00% against 95.50%" in report.verdict(lost)
    larger = [*ROWS[:2], replace(ROWS[2], macs=2e6)]
    assert "does as well" not in report.verdict(larger)
    assert "99.00% against 95.50%" in report.verdict(larger)
    assert "No controls" in report.verdict(ROWS[:2])


def test_page_needs_no_other_file(tmp_path):
    pictures = [tmp_path / "plot.png", tmp_path / "crosstalk.png"]
    report.plot(ROWS, pictures[0])
    report.plot_crosstalk({2: {"superposed": 0.5, "logits": 0.6}}, {2: {"superposed": 0.5, "logits": 0.1}}, pictures[1])
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
    page = report.page(ROWS, "title & co", pictures, {"config": {"seed": 3}})
    assert page.count("<img") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "http" not in page
    assert "plain &lt;CNN&gt;" in page
    assert "title &amp; co" in page
    assert "&quot;seed&quot;: 3" in page
