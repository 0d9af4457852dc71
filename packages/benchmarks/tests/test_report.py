import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import stdev

import pytest
from finished_runs import METRICS, OURS, ROW, make_control, make_run, rate

from mimo_benchmarks.cli.report import execute_report
from mimo_benchmarks.errors import ConfigError
from mimo_benchmarks.report import composition, plots
from mimo_benchmarks.report.composition import write_report
from mimo_benchmarks.report.runs import find_runs
from mimo_benchmarks.result import Spread
from mimo_benchmarks.run_directory import learning_curves
from vsa_core.hub.library import digest


def cells(markdown: str) -> list[dict[str, str]]:
    """The rows of the tables, by the names of the columns."""
    found, head = [], []
    for line in markdown.splitlines():
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not row:
            head = []
        elif not head:
            head = row
        elif not set("".join(row)) <= set("-:"):
            found.append(dict(zip(head, row, strict=True)))
    return found


def written(out: Path, *runs: Path, render=lambda draw: b"") -> tuple[list[dict[str, str]], str]:
    """The table, and all that is returned; without pictures, whose drawing takes most of the time, unless `render` is given."""
    returned = write_report(*find_runs(runs), out, "title & <co>", render=render)
    return cells(returned), returned


def test_numbers_of_the_table(tmp_path):
    for seed, accuracy in enumerate((0.80, 0.81, 0.85)):
        four = OURS[1] | {"accuracy": accuracy, "accuracy_batch_statistics": accuracy + 0.01}
        make_run(tmp_path / f"run-{seed}", (ROW, four), seed=seed, paper={"1": [95.5, None], "4": [92.25, 0.3]})
        make_control(tmp_path / f"run-{seed}" / "equal_cost_n4", 0.7, 1.05e6, seed=seed)
    one, four, control = written(tmp_path / "out", tmp_path)[0]
    assert four == {
        "model": "MIMOConv-10-2",
        "control": "",
        "n": "4",
        "accuracy (seeds)": f"82.00 ± {stdev([80, 81, 85]):.2f}% (3)",
        "with batch statistics": f"83.00 ± {stdev([80, 81, 85]):.2f}%",
        "paper": "92.25 ± 0.30%",
        "speed-up over n = 1": "3.50x (2.86 to 4.28)",
        "inputs/s (quartiles)": "3,500 (3,150 to 3,850)",
        "multiply-adds/input": "1.00 M",
        "changed by regrouping": "5.00 ± 0.00%",
    }
    assert (one["n"], one["paper"], one["accuracy (seeds)"]) == ("1", "95.50%", "90.00 ± 0.00% (3)")
    assert (one["speed-up over n = 1"], control["speed-up over n = 1"]) == ("1.00x", "2.00x (1.64 to 2.44)")
    assert (control["model"], control["control"]) == ("WRN-10-1", "equal cost, n = 4")


def test_one_seed_has_no_spread_and_columns_without_a_word_are_left_out(tmp_path):
    (row,), _ = written(tmp_path / "out", make_run(tmp_path / "run", (OURS[1] | {"changed_by_regrouping": None} | rate(None),)))
    assert row == {"model": "MIMOConv-10-2", "n": "4", "accuracy (seeds)": "80.00% (1)", "multiply-adds/input": "1.00 M"}


def test_a_grid_says_how_many_inputs_it_has(tmp_path):
    rows, _ = written(tmp_path / "out", make_run(tmp_path / "run", (ROW | {"n": 2, "inputs": 4},)))
    assert rows[0]["n"] == "2 (4 per pass)"


def test_runs_are_averaged_over_nothing_but_seeds(tmp_path):
    make_run(tmp_path / "a", (ROW,), settings={"log_every": 5, "device": "cpu"})
    # model.class_names is what a task sets, and earlier runs do not know of it
    settings = {"log_every": 7, "data_dir": "/elsewhere", "model": {"kind": "X", "class_names": None}}
    make_run(tmp_path / "b", (ROW | {"accuracy": 0.7},), seed=1, settings=settings)
    make_run(tmp_path / "c", (ROW | {"accuracy": 0.5},), settings={"optim": {"steps": 9}})
    make_run(tmp_path / "d", (ROW | {"accuracy": 0.4},), preset="other")
    make_control(tmp_path / "c" / "thin", 0.3, control="thin", settings={"optim": {"steps": 9}})
    rows, _ = written(tmp_path / "out", tmp_path)
    assert [(row["preset"], row["control"], row["accuracy (seeds)"][:5], row["accuracy (seeds)"][-3:]) for row in rows] == [
        ("other", "", "40.00", "(1)"),
        ("small, optim.steps = 650", "", "80.00", "(2)"),
        ("small, optim.steps = 9", "", "50.00", "(1)"),
        ("small, optim.steps = 9", "thin", "30.00", "(1)"),
    ]


def test_runs_of_several_processes_are_kept_apart(tmp_path):
    """BatchNorm takes its statistics of fewer inputs there."""
    make_run(tmp_path / "a", (ROW,))
    make_run(tmp_path / "b", (ROW | {"accuracy": 0.7},), processes=2)
    rows, _ = written(tmp_path / "out", tmp_path)
    assert [(row["preset"], row["accuracy (seeds)"]) for row in rows] == [
        ("small, processes = 1", "90.00% (1)"),
        ("small, processes = 2", "70.00% (1)"),
    ]


def test_a_control_that_was_trained_alone_joins_the_only_experiment_that_it_fits(tmp_path):
    make_run(tmp_path / "run", settings={"model": {"kind": "X", "capacity": 4}})
    make_control(tmp_path / "alone", 0.95, settings={"model": {"kind": "Y"}})
    make_run(tmp_path / "other", (ROW,), preset="other")
    rows, returned = written(tmp_path / "out", tmp_path)
    assert [(row["preset"], row["control"]) for row in rows] == [
        ("other", ""),
        ("small", ""),
        ("small", ""),
        ("small", "equal cost, n = 4"),
    ]
    assert "small, n = 4: a plain network does as well at the same cost or less: WRN-10-1" in returned
    make_run(tmp_path / "wider", settings={"model": {"kind": "X", "capacity": 8}})
    rows, _ = written(tmp_path / "again", tmp_path)
    assert "model.kind = Y" in {row["control"]: row["preset"] for row in rows}["equal cost, n = 4"].replace('"', "")


def test_controls_that_differ_among_themselves_are_kept_apart(tmp_path):
    for seed, width in enumerate((1, 2)):
        make_run(tmp_path / str(seed), (ROW,), seed=seed)
        make_control(tmp_path / str(seed) / "thin", control="thin", model="WRN", seed=seed, settings={"model": {"width": width}})
    ours, *controls = written(tmp_path / "out", tmp_path)[0]
    assert ours["accuracy (seeds)"].endswith("(2)")
    assert [row["model"] for row in controls] == ["WRN, model.width = 1", "WRN, model.width = 2"]


def test_a_control_stays_with_its_experiment(tmp_path):
    for width in (1, 2):
        make_run(tmp_path / str(width), (ROW | {"accuracy": 0.8},), settings={"model": {"width": width}})
        make_control(tmp_path / str(width) / "thin", width / 4, control="thin")
    rows, _ = written(tmp_path / "out", tmp_path)
    assert [(row["preset"], row["accuracy (seeds)"]) for row in rows if row["control"]] == [
        ("small, model.width = 1", "25.00% (1)"),
        ("small, model.width = 2", "50.00% (1)"),
    ]


def test_a_seed_counts_once_and_what_is_left_out_is_named(tmp_path):
    make_run(tmp_path / "a", (ROW,))
    make_run(tmp_path / "b", (ROW | {"accuracy": 0.1},))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    (row,), returned = written(tmp_path / "out", tmp_path, tmp_path / "a")
    assert row["accuracy (seeds)"] == "90.00% (1)"
    assert f"Left out, not finished: {tmp_path / 'begun'}." in returned
    assert f"Left out, same settings, seed and device as another run: {tmp_path / 'b'}." in returned
    assert "Networks: 1, on cpu." in returned
    assert f"<summary>{tmp_path / 'b'}</summary>" not in (tmp_path / "out" / "report.html").read_text()


def test_a_seed_on_another_device_is_told_apart(tmp_path):
    """It would count as a second seed, though both learn the same; and the rates differ."""
    make_run(tmp_path / "a", (ROW,), device="CPU (threads = 1)")
    make_run(tmp_path / "b", (ROW | rate(2000.0),), device="CPU (threads = 2)")
    make_control(tmp_path / "b" / "thin", control="thin", device="CPU (threads = 2)")
    make_run(tmp_path / "c", (ROW,), preset="other", device="GPU")
    make_run(tmp_path / "d", (ROW | {"accuracy": 0.7},), preset="other", seed=1, device="CPU (threads = 1)")
    rows, returned = written(tmp_path / "out", tmp_path)
    assert [(row["preset"], row["accuracy (seeds)"][-3:], row["inputs/s (quartiles)"].partition(" ")[0]) for row in rows] == [
        ("other", "(2)", "1,000"),
        ("small, on CPU (threads = 1)", "(1)", "1,000"),
        ("small, on CPU (threads = 2)", "(1)", "2,000"),
        ("small, on CPU (threads = 2)", "(1)", "2,000"),
    ]
    assert "Left out" not in returned


def test_settings_in_labels_are_words_and_only_those_that_tell_apart(tmp_path):
    make_run(tmp_path / "a", settings={"n": [1, 4], "n_odds": [1, 3]})
    make_run(tmp_path / "b", settings={"n": [1, 2, 4], "n_odds": [1, 1, 3]})
    rows, _ = written(tmp_path / "out", tmp_path)
    assert list(dict.fromkeys(row["preset"] for row in rows)) == [
        "small, trained with n = 1, 2, 4",
        "small, trained with n = 1, 4",
    ]
    make_run(tmp_path / "c", settings={"n": [1, 2, 4], "n_odds": [1, 1, 9]})
    rows, returned = written(tmp_path / "again", tmp_path)
    assert "small, trained with n = 1, 2, 4, n_odds = [1, 1, 9]" in [row["preset"] for row in rows]
    assert "\\" not in returned
    assert "n\\_odds" not in (tmp_path / "again" / "report.md").read_text()
    assert "n_odds = \\[1, 1, 9\\]" in (tmp_path / "again" / "report.md").read_text()


def test_rates_of_devices_are_kept_apart(tmp_path):
    make_run(tmp_path / "a", device="cpu")
    make_run(tmp_path / "b", tuple(row | rate(8000.0 * row["n"]) for row in OURS), seed=1, device="GPU")
    make_run(tmp_path / "c", tuple(row | rate(None) for row in OURS), preset="unmeasured", device="GPU")
    rows, returned = written(tmp_path / "out", tmp_path)
    shown = [(row["n"], row["device"], row["inputs/s (quartiles)"], row["speed-up over n = 1"]) for row in rows]
    assert shown[:2] == [
        ("1", "GPU / cpu", "8,000 (7,200 to 8,800) / 1,000 (900 to 1,100)", "1.00x / 1.00x"),
        ("4", "GPU / cpu", "32,000 (28,800 to 35,200) / 3,500 (3,150 to 3,850)", "4.00x (3.27 to 4.89) / 3.50x (2.86 to 4.28)"),
    ]
    assert shown[2:] == [("1", "GPU", "", ""), ("4", "GPU", "", "")]
    assert "Rates of different devices do not compare." in returned
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">8,000 (7,200 to 8,800) /<br>1,000 (900 to 1,100)<" in page
    assert ">GPU /<br>cpu<" in page


def test_a_rate_is_not_set_against_that_of_another_experiment(tmp_path):
    make_run(tmp_path / "a")
    make_control(tmp_path / "alone", device="cpu")
    make_control(tmp_path / "a" / "thin", control="thin", device="GPU")
    rows, returned = written(tmp_path / "out", tmp_path)
    speeds = [(row["model"], row["speed-up over n = 1"]) for row in rows]
    ours = [("MIMOConv-10-2", "1.00x"), ("MIMOConv-10-2", "3.50x (2.86 to 4.28)")]
    assert speeds == [*ours, ("WRN-10-1", ""), ("WRN-10-1", "")]
    assert "scores 70.00% against 80.00%; with one seed" in returned  # without the rates, which were not measured side by side
    assert "Runs were timed apart, so their rates do not compare" in returned


def test_a_verdict_compares_rates_of_the_seeds_that_were_timed_side_by_side(tmp_path):
    for seed, factor in enumerate((1, 3)):
        make_run(tmp_path / str(seed), tuple(row | rate(row["n"] * 1000.0 * factor) for row in OURS), seed=seed)
    make_control(tmp_path / "1" / "equal_cost_n4", seed=1)
    _, returned = written(tmp_path / "out", tmp_path)
    assert "scores 70.00% against 80.00%, at 2,000 inputs/s against 12,000; with one seed" in returned


def test_rates_of_several_runs_are_a_mean_with_the_outermost_quartiles(tmp_path):
    """A speed-up is a mean of ratios within runs, never a ratio of rates of different runs."""
    for seed, (one, four) in enumerate(((rate(1000.0, 900.0, 1000.0), rate(2000.0, 1800.0, 2100.0)), (rate(10.0), rate(40.0)))):
        make_run(tmp_path / str(seed), (ROW | one, OURS[1] | four), seed=seed)
    (one, four), returned = written(tmp_path / "out", tmp_path)
    assert one["inputs/s (quartiles)"] == "505 (9.00 to 1,000)"
    assert four["inputs/s (quartiles)"] == "1,020 (36.0 to 2,100)"
    assert four["speed-up over n = 1"] == "3.00x (1.80 to 4.89)"
    assert "Runs were timed apart, so their rates do not compare: each speed-up is a ratio within one run." in returned


def test_a_network_with_one_n_is_compared_with_its_controls_alone(tmp_path):
    make_run(tmp_path / "run", OURS[1:])
    make_control(tmp_path / "run" / "thin", control="thin")
    ours, control = written(tmp_path / "out", tmp_path)[0]
    assert (ours["speed-up over n = 4"], control["speed-up over n = 4"]) == ("", "0.57x (0.47 to 0.70)")
    make_run(tmp_path / "other", preset="other")
    titles = written(tmp_path / "again", tmp_path)[0][0]
    assert "speed-up over smallest n" in titles
    rows, _ = written(tmp_path / "alone", make_run(tmp_path / "lone" / "run", OURS[1:]))
    assert not [title for title in rows[0] if title.startswith("speed-up")]


@pytest.mark.parametrize(
    ("four", "shown"),
    [
        (rate(5000.0, 4800.0, 5600.0), "5.00x† (4.36 to 6.22)"),  # the ratio of multiply-adds is 4
        (rate(5000.0, 4000.0, 5600.0), "5.00x (3.64 to 6.22)"),
        (rate(4500.0, 4450.0, 4600.0), "4.50x (4.05 to 5.11)"),
    ],
)
def test_a_speed_up_that_multiply_adds_do_not_explain_is_marked(tmp_path, four, shown):
    (_, row), returned = written(tmp_path / "out", make_run(tmp_path / "run", (ROW, OURS[1] | four)))
    assert row["speed-up over n = 1"] == shown
    told = "† Faster than multiply-adds explain: more than 15% above the ratio of multiply-adds/input"
    assert (told in returned) == ("†" in shown)


def test_the_device_stands_with_the_rates(tmp_path):
    _, returned = written(tmp_path / "out", make_run(tmp_path / "run", device="Some CPU (threads = 2)"))
    assert (
        "Rates were measured on Some CPU (threads = 2): medians over the timing rounds, with quartiles in brackets." in returned
    )
    assert "timed apart" not in returned
    _, returned = written(tmp_path / "again", make_run(tmp_path / "other", tuple(row | rate(None) for row in OURS)))
    assert "Rates" not in returned


@pytest.mark.parametrize(
    ("accuracy", "macs", "said"),
    [
        (
            0.85,
            1e6,
            "a plain network does as well at the same cost or less: WRN-10-1 (equal cost, n = 4) scores 85.00% against 80.00%",
        ),
        (
            0.80,
            1.09e6,
            "a plain network does as well at the same cost or less: WRN-10-1 (equal cost, n = 4) scores 80.00% against",
        ),
        (0.75, 1e6, "no plain network does as well at the same cost: WRN-10-1 (equal cost, n = 4) scores 75.00% against 80.00%"),
        (
            0.85,
            2e6,
            "no plain network that costs as little was trained; the cheapest, WRN-10-1 (2.00x the cost of n = 4), takes 2.00",
        ),
    ],
)
def test_verdict_is_in_favour_of_whoever_won(tmp_path, accuracy, macs, said):
    make_run(tmp_path / "run")
    make_control(tmp_path / "run" / "equal_cost_n4", accuracy, macs)
    _, returned = written(tmp_path / "out", tmp_path)
    assert f"small, n = 4: {said}" in returned
    assert ("at 2,000 inputs/s against 3,500; with one seed, a small difference says little." in returned) == (macs < 2e6)
    assert composition.AT_WILL in returned


def test_verdict_weighs_the_spread_over_seeds(tmp_path):
    for seed, (ours, plain) in enumerate(((0.80, 0.79), (0.82, 0.81))):
        make_run(tmp_path / str(seed), (OURS[1] | {"accuracy": ours},), seed=seed)
        make_control(tmp_path / str(seed) / "equal_cost_n4", plain, seed=seed)
        make_control(tmp_path / str(seed) / "thin", 0.2, 1e5, seed=seed, control="thin")
    _, returned = written(tmp_path / "out", tmp_path)
    assert "80.00% against 81.00%, at 2,000 inputs/s against 3,500; the difference is within the spread over seeds." in returned
    assert composition.AT_WILL not in returned  # with one n, there is nothing to choose


def test_verdict_without_controls_and_of_plain_networks(tmp_path):
    make_run(tmp_path / "run")
    make_run(tmp_path / "plain", preset="plain", task="other", superposed=False)
    _, returned = written(tmp_path / "out", tmp_path)
    assert returned.count("no controls were trained") == 1
    assert composition.AT_WILL not in returned


def test_what_guessing_gets_right_is_told(tmp_path):
    _, returned = written(tmp_path / "out", make_run(tmp_path / "run", guesses={"the last value": 0.283}))
    assert "Right by guessing: the last value 28.30%." in returned


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.said = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.said.append(data)


NASTY = """<script>x()</script>"'&|`*a*[b](c) _d_ \n# e\x1b[31m\ud800\u202e"""


def test_a_command_whose_names_are_not_utf_8_can_be_written(tmp_path):
    """That of a run in this process, which no result.json has passed through."""
    (run,), _ = find_runs([make_run(tmp_path / "run")])
    facts = replace(run, result=replace(run.result, command="mimonets --out caf\udce9/1")).facts()
    assert facts["command"] == "mimonets --out caf /1"


def test_page_needs_no_other_file_and_takes_nothing_for_markup(tmp_path):
    crosstalk = {"before": {"4": {NASTY: 0.5, "logits": 0.6}}, "after": {"4": {NASTY: 0.5, "logits": 0.1}}}
    words = dict.fromkeys(("preset", "task", "model", "device", "command", "git_revision"), NASTY)
    settings = {"optim": {NASTY: NASTY}}
    run = make_run(
        tmp_path / "<run>", **words, guesses={NASTY: 0.1}, crosstalk=crosstalk, versions={NASTY: NASTY}, settings=settings
    )
    make_control(run / "thin", **words | {"model": "$x$ | y_z"}, control=NASTY)
    make_run(run / "other", **words | {"preset": "other"})
    make_run(run / "third", **words | {"task": "third"})
    returned = write_report(*find_runs([run]), tmp_path / "out", "title & <co>")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    allowed = {"html", "meta", "title", "style", "h1", "h2", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    allowed |= {"figure", "img", "figcaption", "details", "summary", "span", "dl", "dt", "dd"}
    assert set(page.tags) <= allowed
    known = {"lang", "charset", "name", "content", "class", "colspan", "data-label", "alt", "src"}
    assert {name for name, _ in page.attributes} <= known
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "style")]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in text
    assert "url(" not in text
    assert NASTY.split("\n", maxsplit=1)[0] in "".join(page.said)
    markdown = (tmp_path / "out" / "report.md").read_text()
    for shown in (returned, markdown):
        assert not set("\x1b\u202e\ud800") & set(shown)
    assert "<script>" in returned
    assert "\\<script\\>" in markdown
    assert not re.search(r"(?<!\\)[<>*`\[]", re.sub(r"!\[.*?\]\(\w+\.png\)", "", markdown))
    assert cells(markdown)[2]["model"] == "\\$x\\$ \\| y_z"


def test_page_explains_the_words_that_it_uses(tmp_path):
    crosstalk = {"before": {"4": {"logits": 0.6}}, "after": {"4": {"logits": 0.1}}}
    make_run(tmp_path / "run", (ROW | {"accuracy_batch_statistics": 0.9}, OURS[1]), crosstalk=crosstalk)
    make_control(tmp_path / "run" / "equal_cost_n4")
    make_control(tmp_path / "run" / "thin", control="thin")
    written(tmp_path / "out", tmp_path)
    text = (tmp_path / "out" / "report.html").read_text()
    terms = text.partition("<h2>Terms</h2>")[2].partition("</dl>")[0]
    assert re.findall("<dt>(.*?)</dt>", terms) == [
        "n", "equal cost", "thin", "batch statistics", "speed-up", "quartiles", "multiply-adds", "regrouping", "crosstalk"
    ]  # fmt: skip
    written(tmp_path / "again", make_run(tmp_path / "plain", (ROW | rate(None),), preset="plain", superposed=False))
    terms = (tmp_path / "again" / "report.html").read_text().partition("<h2>Terms</h2>")[2].partition("</dl>")[0]
    assert re.findall("<dt>(.*?)</dt>", terms) == ["n", "multiply-adds"]


def test_crosstalk_that_no_seed_knows_is_unknown(tmp_path):
    """And the mean is over the seeds that know it."""
    shares = [(None, 0.5, 0.25), (None, None, 0.75)]
    for seed, after in enumerate(shares):
        places = dict(zip(("superposed", "unbound", "logits"), after, strict=True))
        make_run(tmp_path / str(seed), seed=seed, crosstalk={"before": {"4": dict.fromkeys(places)}, "after": {"4": places}})
    written(tmp_path / "out", tmp_path)
    assert "unknown where features do not vary" in (tmp_path / "out" / "report.md").read_text()
    assert "n = 4: superposed unknown, unbound 0.50, logits 0.50" in (tmp_path / "out" / "report.html").read_text()


def test_pictures_can_be_enlarged_and_have_words_for_those_who_do_not_see_them(tmp_path):
    """By the keyboard too: a summary is a button. The page itself holds the picture once."""
    crosstalk = {"before": {"4": {"logits": 0.6}}, "after": {"4": {"superposed": 0.3, "logits": 0.1}}}
    written(tmp_path / "out", make_run(tmp_path / "run", crosstalk=crosstalk))
    text = (tmp_path / "out" / "report.html").read_text()
    pictures = re.findall(
        r'<figure><details class="picture"><summary><img alt="(.*?)" src="data:image/png;base64,"><span>enlarge or shrink</span>'
        r"</summary></details><figcaption>(.*?)</figcaption></figure>",
        text,
    )
    alts, captions = zip(*pictures, strict=True)
    assert captions == (
        "digits: accuracy against cost and rate",
        "digits: accuracy while training",
        "small: crosstalk along the network",
    )
    assert alts[0] == "digits: accuracy against cost and rate; the table above has the numbers"
    assert "MIMOConv-10-2, n = 1: 0% at step 1; MIMOConv-10-2, n = 4: 50% at step 3" in alts[1]
    assert "n = 4: superposed 0.30, logits 0.10" in alts[2]
    assert "figure:has([open]) { grid-column: 1 / -1 }" in text


def test_page_tells_how_each_network_was_trained(tmp_path):
    make_run(tmp_path / "run", command="run.py small --seed 0", peak_memory_bytes=1234)
    make_control(tmp_path / "run" / "thin", control="thin", git_revision="fedcba9")
    written(tmp_path / "out", tmp_path)
    said = Page((tmp_path / "out" / "report.html").read_text()).said
    for words in (
        "run.py small --seed 0",
        "1,234 bytes",
        "fedcba9",
        "20,800",
        "61 s",
        "torch 2.6",
        str(tmp_path / "run" / "thin"),
    ):
        assert words in said
    assert "n = 1: 90.00%; n = 4: 90.00%" in said
    assert any("optim.steps = 650" in part for part in said)


def test_files_that_are_written(tmp_path):
    crosstalk = {"before": {"4": {"logits": 0.6}}, "after": {"4": {"logits": 0.1}}}
    make_run(tmp_path / "a", crosstalk=crosstalk)
    written(tmp_path / "one", tmp_path / "a", render=plots.render_png)
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "report.md", "report.html", "accuracy_throughput.png", "learning_curves.png", "crosstalk.png"
    }  # fmt: skip
    make_run(tmp_path / "b", preset="other", metrics=(), crosstalk=crosstalk)
    make_run(tmp_path / "c", task="mnist", metrics=())
    written(tmp_path / "two", tmp_path, render=plots.render_png)
    assert {path.name for path in (tmp_path / "two").glob("*.png")} == {
        "accuracy_throughput.png", "accuracy_throughput_2.png", "learning_curves.png", "crosstalk.png", "crosstalk_2.png"
    }  # fmt: skip
    shown = re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "two" / "report.md").read_text())
    assert set(shown) == {path.name for path in (tmp_path / "two").glob("*.png")}
    assert all((tmp_path / "two" / name).read_bytes().startswith(b"\x89PNG") for name in shown)


def damage(result: dict, **changed) -> str:
    return json.dumps(result | changed)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda _: "",
        lambda _: "[]",
        lambda result: json.dumps(result)[:-20],
        lambda result: json.dumps({key: value for key, value in result.items() if key != "rows"}),
        lambda result: damage(result, rows=[]),
        lambda result: damage(result, rows=[ROW | {"accuracy": "0.9"}]),
        lambda result: damage(result, rows=[ROW | {"accuracy": float("nan")}]),
        lambda result: damage(result, rows=[ROW | {"macs": 0}]),
        lambda result: damage(result, rows=[ROW | {"macs": 5e-324}]),
        lambda result: damage(result, rows=[ROW | rate(1e-320, 1e-320, 1e-320)]),
        lambda result: damage(result, rows=[ROW | {"accuracy": -0.5}]),
        lambda result: damage(result, seed=-(10**400)),
        lambda result: "[" * 100_000,
        lambda result: json.dumps(result)[:-1] + ', "x": ' + "[" * 300 + "]" * 300 + "}",
        lambda result: damage(result, rows=[ROW | {"macs": 10**400}]),
        lambda result: damage(result, rows=7),
        lambda result: damage(result, paper={"1": 3}),
        lambda result: damage(result, guesses=[1]),
        lambda result: damage(result, crosstalk={"before": {}}),
        lambda result: damage(result, versions=None),
    ],
)
def test_damaged_result_is_refused(tmp_path, damaged):
    file = make_run(tmp_path / "run") / "result.json"
    file.write_text(damaged(json.loads(file.read_text())))
    for folder in (tmp_path, tmp_path / "run"):
        with pytest.raises(
            ConfigError, match=re.escape(str(file)) + r" (is damaged|was written by another version|.*damaged)"
        ) as error:
            written(tmp_path / "out", folder)
        assert "Error" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_read_are_left_out_beside_others(tmp_path, capsys):
    make_run(tmp_path / "good")
    old, cut = (make_run(tmp_path / name, seed=1, device="other") / "result.json" for name in ("old", "cut"))
    result = json.loads(old.read_text())
    for row in result["rows"]:
        del row["inputs_per_second_quartiles"]
    old.write_text(json.dumps(result))
    cut.write_text(cut.read_text()[:-20])
    execute_report([str(tmp_path), "--out", str(tmp_path / "out")])
    said = [f"Left out, damaged: {cut.parent}.", f"Left out, written by another version: {old.parent}."]
    printed = capsys.readouterr()
    assert printed.err.splitlines() == said
    for shown in (printed.out, (tmp_path / "out" / "report.html").read_text()):
        assert "Networks: 1, on cpu." in shown
        assert all(line in shown for line in said)
    with pytest.raises(
        ConfigError, match=re.escape(f"{old} was written by another version (it has no entry inputs_per_second_quartiles)")
    ):
        execute_report([str(tmp_path / "good"), str(old.parent), "--out", str(tmp_path / "again")])


@pytest.mark.parametrize("config", ["", "{}", '{"config": 3}'])
def test_damaged_settings_are_refused(tmp_path, config):
    file = make_run(tmp_path / "run") / "config.json"
    file.write_text(config)
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        written(tmp_path / "out", tmp_path)


def test_settings_that_were_changed_are_refused(tmp_path):
    """A run of an earlier version has no checksum."""
    run = make_run(tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    content["sha256"] = digest(content, b"")
    for seed in (content["config"]["seed"], 5):
        content["config"]["seed"] = seed
        (run / "config.json").write_text(json.dumps(content))
        if seed != 5:
            assert len(find_runs([run])[0]) == 1
    with pytest.raises(ConfigError, match=re.escape(f"{run / 'config.json'} was changed after it was written")):
        find_runs([run])


def test_lines_of_metrics_that_were_cut_off_are_left_out(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\n[]\n{"step": 4, "accuracy": "x"}\n{"step": -1, "accuracy": 0.5}\n{"step": 4, "accuracy": 7}\n')
        file.write(b"[" * 100_000 + b'\n{"step": 1' + b"0" * 400 + b', "accuracy": 0.5}\n{"step": 5, "accur\xff')
    (found,), _ = find_runs([run])
    assert found.train_curves == {"1": ([1], [0.0]), "4": ([3], [0.5])}
    assert found.dev_curves == {"1": ([2], [0.5])}


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "result.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_named(name, make, tmp_path):
    """A folder, or a pipe, which would be read for ever."""
    file = make_run(tmp_path / "run") / name
    file.unlink()
    make(file)
    with pytest.raises(ConfigError, match=re.escape(f"{file} cannot be read (it is not a file)")):
        find_runs([tmp_path])


def test_a_control_that_lies_beside_another_program_s_settings(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "an application"}')
    run = make_control(tmp_path / "run")
    (found,), _ = find_runs([run])
    assert found.root == run


def test_curves_are_the_same_before_they_are_written():
    """A run that has just ended has its metrics in memory, where n is a number."""
    lines = [{"step": 2, "n": 4, "accuracy": 0.5}, {"step": 2, "dev_accuracy": {1: 0.5, 4: 0.25}}]
    found = learning_curves(lines, by_n=True)
    assert found == learning_curves(json.loads(json.dumps(lines)), by_n=True)
    assert found == ({"4": ([2], [0.5])}, {"1": ([2], [0.5]), "4": ([2], [0.25])})


def test_a_plain_network_has_one_curve(tmp_path):
    """It takes its inputs one by one, so neither training nor dev accuracy depends on n."""
    metrics = [*METRICS[:2], {"step": 2, "dev_accuracy": {"2": 0.5, "4": 0.5}}, METRICS[3]]
    (found,), _ = find_runs([make_run(tmp_path / "run", (ROW,), superposed=False, metrics=metrics)])
    assert list(found.train_curves.values()) == [([1, 3], [0.0, 0.5])]
    assert list(found.dev_curves.values()) == [([2], [0.5])]


def test_figures_get_each_device_and_each_n(tmp_path, monkeypatch):
    make_run(tmp_path / "a", device="cpu", metrics=[*METRICS, {"step": 4, "n": 4, "accuracy": 0.75}])
    make_run(tmp_path / "b", tuple(row | rate(8000.0 * row["n"]) for row in OURS), seed=1, device="GPU")
    make_run(tmp_path / "c", (ROW | rate(2000.0),), seed=0, device="cpu", preset="other")
    given = {}
    for name in ("draw_accuracy_throughput", "draw_learning_curves"):
        monkeypatch.setattr(plots, name, lambda *arguments, name=name: given.setdefault(name, arguments))
    written(tmp_path / "out", tmp_path, render=lambda draw: bool(draw()) and b"")
    series, apart = given["draw_accuracy_throughput"]
    ours = next(one for one in series if one.label.startswith("small"))
    assert [point.rates for point in ours.points] == [
        {"GPU": Spread(value=8000, low=7200, high=8800), "cpu": Spread(value=1000, low=900, high=1100)},
        {"GPU": Spread(value=32000, low=28800, high=35200), "cpu": Spread(value=3500, low=3150, high=3850)},
    ]
    assert apart == {"cpu"}  # where two runs were timed
    ((ours, *_),) = ([one for one in given["draw_learning_curves"][0] if one.label.startswith("small")],)
    assert list(ours.train_curves) == [("1", [1], [0.0]), ("4", [3, 4], [0.5, 0.75]), ("1", [1], [0.0]), ("4", [3], [0.5])]
    assert list(ours.dev_curves) == [("1", [2], [0.5])] * 2


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "run")
    execute_report([str(run)])
    assert "MIMOConv-10-2" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").exists()
    execute_report([str(run), str(run), "--out", "elsewhere"])
    assert (tmp_path / "elsewhere" / "report.md").exists()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for arguments, named in (([], "no folder was named"), (["empty"], "empty"), (["missing"], "no such folder: missing")):
        with pytest.raises(ConfigError, match=named):
            execute_report(arguments)
    with pytest.raises(ConfigError, match="choose another --out"):
        execute_report([str(run), "--out", "file"])


@pytest.mark.skipif(os.name == "nt", reason="there are no pipes with names")
def test_a_pipe_in_the_place_of_a_report_is_named(tmp_path):
    """Writing into it would wait for ever."""
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/report.html")
    reader = os.open(tmp_path / "out/report.html", os.O_RDONLY | os.O_NONBLOCK)  # lets what writes all the same go on
    try:
        with pytest.raises(ConfigError, match=r"report.html is not a file\): choose another --out"):
            written(tmp_path / "out", make_run(tmp_path / "run"))
    finally:
        os.close(reader)
