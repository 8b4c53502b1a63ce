"""The report's parts with known answers, and the page of runs in every state; test_report_page.py looks at it."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from altair.vegalite.v6.schema import core
from PIL import Image

from graft import metrics as metrics_module
from graft.debugger import records as debugger_records
from graft.diagnosis import Finding
from graft.plateau import settled
from graft.profiler import records as profiler_records
from graft.profiler.records import RecordWriter
from graft.profiler.stopwatch import STEP_COLUMNS
from graft.report import charts, page, predictions, search_charts
from graft.report import photos as page_photos
from graft.report.__main__ import main
from graft.report.drawing import DrawingError, draw, whole
from graft.report.files import read_run
from graft.report.losses import Losses, logged, thinned
from graft.report.page import class_name, inside, make_report, render, seconds, write_report
from graft.report.photos import SIDE, Thumbnails
from graft.report.predictions import Bin, Prediction, calibration, confused, worst
from graft.report.search_view import ordered
from graft.report.sections import by_cost, leaked
from graft.report.trials import Trial, heights, read_search
from tests.recorded import columns
from tests.run_files import HOSTILE, write_logs, write_run

# --- pure parts ------------------------------------------------------------------------------------------------------


def prediction(label: str, guess: str, confidence: float, name: str = "p") -> Prediction:
    return Prediction(f"photos/{name}.jpg", "test", label, guess, confidence, None)


def test_calibration_counts_in_the_bins_of_the_calibration_error() -> None:
    assert predictions.BINS == metrics_module.CALIBRATION_BINS
    low = [prediction("a", "a", 0.05), prediction("a", "b", 0.03)]
    high = [prediction("a", "a", 1.0), prediction("b", "b", 0.95), prediction("b", "a", 0.98)]
    first, second = calibration([*low, *high])
    assert [first.confidence, first.accuracy, first.photos] == pytest.approx([0.04, 0.5, 2])
    assert [second.confidence, second.accuracy, second.photos] == pytest.approx([2.93 / 3, 2 / 3, 3])
    # Wilson's interval of 2 in 3, from any table
    assert [second.low, second.high] == pytest.approx([0.2077, 0.9385], abs=1e-4)


def test_the_calibration_error_of_the_bins_is_that_of_the_metrics() -> None:
    import torch

    logits = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (400, 5)))
    labels = torch.arange(400) % 5
    top = logits.softmax(1).max(1)
    rows = [
        prediction(str(label), str(guess), share)
        for label, guess, share in zip(labels.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    error = sum(b.photos * abs(b.accuracy - b.confidence) for b in calibration(rows)) / 400
    known = metrics_module.measure(logits, labels, temperature=1.0, seed=0)["ece"]
    assert error == pytest.approx(known, abs=1e-6)


def test_confused_pairs_name_their_photos_the_surest_first() -> None:
    rows = [
        *(prediction("akita", "husky", confidence, f"m{confidence}") for confidence in (0.4, 0.9)),
        prediction("akita", "akita", 0.99),
        prediction("husky", "husky", 0.5, "h"),
        prediction("husky", "akita", 0.6),
        prediction("beagle", "akita", 0.7),
    ]
    first, second = confused(rows, most=2)
    assert (first.label, first.guess, first.photos) == ("akita", "husky", 3)
    assert [p.path for p in first.mistaken] == ["photos/m0.9.jpg", "photos/m0.4.jpg"]
    assert [p.path for p in first.likes] == ["photos/h.jpg"]
    assert (second.label, second.guess) == ("beagle", "akita")  # as often as husky for akita: by name
    assert [p.confidence for p in worst(rows, 2)] == [0.9, 0.7]


def test_photos_in_two_splits_are_counted_once() -> None:
    near = {"check": "near_duplicates", "files": ["test/a/1 = train/a/1", "test/a/1 = valid/a/2", "valid/x = train/y"]}
    same = {"check": "identical_across_splits", "files": ["test/b = train/b"]}
    other = {"check": "label_conflict", "files": ["test/c = train/c"]}
    assert leaked([near, same, other]) == 2


def test_findings_stand_in_the_order_of_their_cost() -> None:
    from graft.diagnosis import Diagnosis

    def named(name: str, cost: float | None) -> Finding:
        return Finding(name, "", "", "", cost_s=cost)

    found = by_cost([Diagnosis((named("a", None), named("b", 1.0)), ()), None, Diagnosis((named("c", 5.0),), ())])
    assert [finding.rule for finding in found] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("values", "logarithmic", "places"),
    [
        ([1, 3, 2], False, [0, 1, 0.5]),
        ([1e-4, 1e-2, 1e-3], True, [0, 1, 0.5]),
        ([0.0, 1e-2, 1e-1], True, [0, 0.5, 1]),  # zero stands as far below as a tenth of the lowest
        (["sgd", "adam", "adam"], False, [1, 0, 0]),
        ([True, False], False, [1, 0]),
        ([5, 5], False, [0, 0]),
        ([None, 4], False, [1, 0]),
    ],
)
def test_where_values_stand_on_their_axis(values: list[Any], logarithmic: bool, places: list[float]) -> None:
    assert heights(values, logarithmic=logarithmic) == pytest.approx(places)


def test_a_thinned_curve_keeps_its_ends_and_spikes() -> None:
    steps = np.arange(10_000)
    values = np.sin(steps / 500)
    values[7777] = 9.0
    small = thinned(Losses(steps, steps, values, recorded=True), most=100)
    assert len(small.step) <= 100
    assert 7777 in small.step
    assert (np.diff(small.step) > 0).all()
    assert small.value.min() == values.min()


def test_logs_of_a_resumed_run_are_joined_and_a_torn_row_is_left_out(tmp_path: Path) -> None:
    write_logs(tmp_path, rows="3,7")
    later = tmp_path / "logs" / "csv" / "version_1"
    shutil.copytree(tmp_path / "logs" / "csv" / "version_0", later)
    (later / "metrics.csv").write_text("epoch,step,train/loss,valid/accuracy,valid/loss\n2,59,,0.6,0.7\n2,49,0.5,,\n")
    course = logged(tmp_path)
    assert course.modes["TRAIN"].step.tolist() == [10, 20, 30, 40, 50, 60]
    assert course.modes["TRAIN"].value.tolist() == [2.0, 1.5, 1.2, 1.1, 0.5, 0.8]
    assert {step: losses.tolist() for step, losses in course.evaluations.items()} == {20: [1.4], 40: [1.0], 60: [0.7]}


@pytest.mark.parametrize(
    ("value", "words"), [(None, ""), (0.26, "0.3 s"), (9.96, "10.0 s"), (12.4, "12 s"), (125, "2 min 5 s")]
)
def test_seconds_in_words(value: float | None, words: str) -> None:
    assert seconds(value) == words


def test_names_as_a_person_says_them() -> None:
    assert class_name("077.Miniature_poodle") == "Miniature poodle"
    assert class_name("077") == "077"
    assert inside("s3://bucket/photos/test/a.jpg", "s3://bucket/photos/") == "test/a.jpg"
    assert inside("elsewhere/a.jpg", None) == "elsewhere/a.jpg"


# --- figures ---------------------------------------------------------------------------------------------------------

STEPS = np.arange(1, 101)
CURVE = Losses(STEPS, STEPS, 3.0 / STEPS, recorded=True)
EVALUATED = {80: np.array([0.5]), 100: np.array([0.5])}
SAMPLES = dict.fromkeys(("seconds", "cpu_percent", "gpu0_percent", "disk_read_mb_s"), STEPS.astype(np.float64))
TRIALS = [
    Trial(number, {"optim.lr": 10.0**-number, "model": HOSTILE}, "ok", 0.5 + number, "", 1.0, ((10, 2.0), (20, 1.0)))
    for number in range(1, 4)
]
SHARES = [{"key": "optim.lr", "share": 0.7, "low": 0.5, "high": 0.9}]
SPECS = {
    "loss": charts.loss_chart({"TRAIN": CURVE, "EVAL": CURVE}, settled(EVALUATED)),
    "logs": charts.loss_chart({"EVAL": Losses(STEPS, STEPS, 3.0 / STEPS, recorded=False)}, None),
    "calibration": charts.calibration_chart([Bin(0.9, 0.8, 0.7, 0.9, 50)]),
    "phases": charts.phases_chart({"data_wait": 3.0, "forward": 1.0, "other": 0.0}),
    "utilisation": charts.utilisation_chart(SAMPLES),
    "parallel": search_charts.parallel_chart(TRIALS, ["optim.lr", "model"], 1, "valid/loss", frozenset({"optim.lr"})),
    "importance": search_charts.importance_chart(SHARES),
    "curves": search_charts.curves_chart(TRIALS, 1),
    "history": search_charts.history_chart(TRIALS, "valid/loss", maximize=False),
}


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_figure_is_valid_vega_lite_and_takes_its_colours_from_the_page(name: str) -> None:
    spec = SPECS[name]
    assert spec is not None
    core.Root.validate(whole(spec))
    svg = draw(spec)
    assert " id=" not in svg, "identifiers would be those of every other figure of the page"
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg)) - {"none", "transparent"}
    assert colours
    assert all(colour.startswith("var(--") for colour in colours), colours


def test_the_colours_of_figures_are_those_of_the_style_sheet() -> None:
    style = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    used = {name for spec in SPECS.values() for name in re.findall(r"var\((--\w+)\)", json.dumps(whole(spec or {})))}
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    assert used <= set(re.findall(r"(--\w+):", light))
    assert used <= set(re.findall(r"(--\w+):", dark.split("* {")[0]))


def test_the_loss_figure_has_the_name_and_the_two_axes_of_the_original() -> None:
    svg = draw(SPECS["loss"] or {})
    assert ">CrossEntropyLoss_output_0<" in svg
    assert ">TRAIN step<" in svg
    assert ">EVAL step<" in svg
    assert ">no significant gain after step 80<" in svg
    assert 'aria-label="TRAIN step 100: 0.0300 (100 optimiser steps taken)"' in svg


def test_names_are_text_inside_a_figure() -> None:
    svg = draw(SPECS["parallel"] or {})
    assert "<script" not in svg
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in svg


def test_a_figure_that_cannot_be_drawn_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DrawingError, match=r"^a figure cannot be drawn: "):
        draw({"mark": "no such mark"})
    monkeypatch.setattr(charts, "loss_chart", lambda *_: {"mark": "no such mark"})
    assert "a figure cannot be drawn" in render(write_run(tmp_path / "run"))


def test_many_cores_are_told_as_their_mean_and_the_busiest() -> None:
    seconds = np.arange(0.5, 500, 0.5)
    cores = {f"cpu{core}_percent": np.full(len(seconds), float(core)) for core in range(64)}
    samples = {"seconds": seconds, "cpu_percent": np.full(len(seconds), 31.5), **cores, "memory_percent": seconds / 10}
    assert [*charts.told_cores(samples)] == ["seconds", "cpu_percent", "busiest_core_percent", "memory_percent"]
    assert set(charts.told_cores(samples)["busiest_core_percent"]) == {63.0}
    eight = {name: samples[name] for name in ("seconds", "cpu_percent", *[*cores][:8])}
    assert charts.told_cores(eight) == eight
    svg = draw(charts.utilisation_chart(samples) or {})
    assert 'aria-label="busiest core at 0.5 s: 63.0 %"' in svg


def test_the_history_of_a_search_keeps_what_was_the_best_so_far() -> None:
    values = [5.0, 6.0, 4.0, 7.0, 3.0]
    trials = [Trial(number, {}, "ok", value, "", 1.0) for number, value in enumerate(values)]
    rows = search_charts.history_chart(trials, "valid/loss", maximize=False)["data"]["values"]
    assert [(row["trial"], row["best"]) for row in rows] == [(0, 5.0), (1, 5.0), (2, 4.0), (3, 4.0), (4, 3.0)]
    rows = search_charts.history_chart(trials, "valid/accuracy", maximize=True)["data"]["values"]
    assert [row["best"] for row in rows] == [5.0, 6.0, 6.0, 7.0, 7.0]


def test_nothing_is_drawn_of_nothing() -> None:
    assert charts.utilisation_chart({}) is None
    assert search_charts.curves_chart([Trial(0, {}, "failed", None, "", 1.0)], None) is None


# --- photos ----------------------------------------------------------------------------------------------------------


def test_a_thumbnail_is_a_small_square_of_the_photo(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), (200, 30, 40)).save(tmp_path / "a.jpg")
    thumbnails = Thumbnails(str(tmp_path), "crop", tmp_path, 0)
    uri = thumbnails.one(f"{tmp_path}/a.jpg")
    assert uri is not None
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.size == (SIDE, SIDE)
        assert np.asarray(image.convert("RGB")).mean((0, 1)) == pytest.approx([200, 30, 40], abs=6)


def test_photos_that_are_gone_elsewhere_or_damaged_are_counted(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.jpg").write_text("no photo")
    (tmp_path / "secret.jpg").write_text("outside of data.root")
    thumbnails = Thumbnails(str(tmp_path / "photos"), "crop", tmp_path, 0)
    wanted = [
        str(tmp_path / "photos" / "gone.jpg"),
        str(tmp_path / "photos" / "text.jpg"),
        str(tmp_path / "secret.jpg"),
    ]
    assert thumbnails.take(wanted) == {}
    assert thumbnails.missing == wanted
    assert Thumbnails("ftp://host/photos", "crop", tmp_path, 0).take(["ftp://host/photos/a.jpg"]) == {}


def test_photos_stop_at_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((200, 200), 80).convert("RGB").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    monkeypatch.setattr("graft.report.photos.BUDGET", 20_000)
    thumbnails = Thumbnails(str(tmp_path), "squash", tmp_path, 0)
    assert [*thumbnails.take(f"{tmp_path}/{name}" for name in ("a.png", "b.png"))] == [f"{tmp_path}/a.png"]
    assert (thumbnails.left_out, thumbnails.missing) == (1, [])


def test_a_photo_of_valid_may_lie_in_a_folder_val(tmp_path: Path) -> None:
    (tmp_path / "val").mkdir()
    Image.new("RGB", (50, 50)).save(tmp_path / "val" / "a.jpg")
    thumbnails = Thumbnails(str(tmp_path), "crop", tmp_path, 0)
    assert [*thumbnails.named(["valid/a.jpg", "valid/b.jpg"])] == ["valid/a.jpg"]


# --- pages -----------------------------------------------------------------------------------------------------------


class Text(HTMLParser):
    """The text of a page as a reader sees it, and its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(write_run(tmp_path_factory.mktemp("runs") / "run"))


def test_the_sections_stand_in_the_order_of_what_a_person_wants_to_know(made: str) -> None:
    titles = re.findall(r'<h2 id="([\w-]+)-title"', made)
    assert titles == [
        "verdict", "accuracy", "loss", "findings", "rules", "time", "calibration", "confused", "worst", "data",
        "settings",
    ]  # fmt: skip


def test_the_page_says_what_the_files_say(made: str) -> None:
    text = Text(made).text
    for words in (
        "Ready to deploy",
        "the model is right for 80.0 % of 700 photos it never saw",
        "No significant gain came after step 40 of 60",
        "Test was opened 1 time with these photos.",
        "recomputed_frozen_features cost 1 min 36 s would save 1 min 30 s since step 10",
        "Its symptoms, which go with it: low_gpu_utilization",
        "Akita taken for Beagle 1 of 3",
        "2 of <script>alert(1)</script>",
        "diff_percent = 0.1, num_steps = 10",
    ):
        assert words in text, words


def test_what_comes_from_the_data_is_text(made: str) -> None:
    parsed = Text(made)
    assert parsed.tags.count("script") == 1
    assert HOSTILE in parsed.text
    assert "<script>alert" not in made


def test_only_the_page_s_own_script_may_run(made: str) -> None:
    import hashlib

    script = re.search(r"<script>(.*?)</script>", made, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in made
    assert not re.search(r'(?:src|href)="(?!data:|#)', made)


UNFINISHED = {"id": "ab", "state": "unfinished", "reason": "stopped by SIGTERM", "at": "2026-11-27T12:00:00+00:00"}


def test_a_run_that_has_just_begun_has_a_page_that_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(UNFINISHED))
    text = Text(render(tmp_path)).text
    for words in (
        "Not ready to deploy: there is no accuracy yet.",
        "This run is unfinished (stopped by SIGTERM), last heard of at 2026-11-27T12:00:00+00:00",
        "There are no figures yet: the run was not evaluated.",
        "No loss was recorded.",
        "The debugger's rules did not run. The profiler's rules did not run.",
        "Utilisation was not sampled.",
        "No times were recorded.",
        "There are no predictions yet.",
        "The photos were not looked at yet.",
    ):
        assert words in text, words


def test_a_run_that_goes_on_is_judged_by_its_records_by_now(tmp_path: Path) -> None:
    # What an earlier process found lies there: low_gpu_utilization, and a summary of a rule that saw 376 points.
    run = write_run(tmp_path / "run", **{"run.json": UNFINISHED})
    facts = debugger_records.Facts(num_classes=3, batch_size=4, steps_per_epoch=10, learning_rate=0.1)
    writer = debugger_records.RecordWriter(run, facts, {"TRAIN": 0, "EVAL": 0})
    writer.write("losses", columns("losses", [{"mode": "TRAIN", "step": 0, "value": math.nan}]))
    profiler_records.RecordWriter(run)
    text = Text(render(run)).text
    assert "nan_or_inf since step 0" in text
    assert "376" not in text
    assert "recomputed_frozen_features cost" not in text
    (run / "run.json").write_text(json.dumps({**UNFINISHED, "state": "finished"}))
    assert "recomputed_frozen_features cost" in Text(render(run)).text


def test_a_step_is_told_by_its_parts_from_the_records(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert read_run(run).step_ms == {}
    assert "whole step" not in write_report(run).read_text()
    rows = np.zeros((101, len(STEP_COLUMNS)))
    rows[:, STEP_COLUMNS.index("seconds")] = np.arange(101)
    rows[:, STEP_COLUMNS.index("data_wait")] = np.arange(101) / 1e3  # 0 to 100 ms
    rows[:, STEP_COLUMNS.index("forward")] = 0.25
    rows[:, STEP_COLUMNS.index("evaluation")] = 9.0  # of no step
    RecordWriter(run).write("steps", STEP_COLUMNS, rows.tolist())
    found = read_run(run).step_ms
    assert list(found) == ["data_wait", "transfer", "forward", "backward", "optimiser", "other", "step"]
    assert found["data_wait"] == pytest.approx({"p50": 50, "p95": 95, "p99": 99})
    assert found["step"] == pytest.approx({"p50": 300, "p95": 345, "p99": 349})
    numbers = "".join(f'<td class="num">{number}</td>' for number in ("300.00", "345.00", "349.00"))
    assert f'<th scope="row">whole step</th>{numbers}' in write_report(run).read_text()


def test_a_killed_run_shows_its_losses(tmp_path: Path) -> None:
    absent = dict.fromkeys(("metrics.json", "evaluation.json", "predictions.csv"))
    run = write_run(tmp_path / "run", **{"run.json": UNFINISHED, **absent})
    text = Text(render(run)).text
    assert "This run is unfinished" in text
    assert "Cross-entropy from the logs" in text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metrics.json", "{", "metrics.json cannot be read: Expecting property name"),
        ("data.json", "[]", "data.json cannot be read: it holds a list, not an object"),
        ("predictions.csv", "path,split\na,b\n", "predictions.csv cannot be read: a column is missing: 'class_1'"),
        ("environment.json", "\x00", "environment.json cannot be read: Expecting value"),
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    assert sentence in Text(render(write_run(tmp_path / "run", **{name: content}))).text


def test_photos_that_moved_are_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run-photos")
    html = render(run)
    assert "9 of 9 photos are no longer where the run read them, such as" in Text(html).text
    assert "data:image/webp" not in html


def test_the_command_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run)]) == 0
    assert capsys.readouterr().out == f"report: {run}/report.html\n"
    assert (run / "report.html").stat().st_size < 3e6


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool) -> None:
    place = tmp_path if there else tmp_path / "nothing"
    assert main([str(place)]) == 2
    assert f"error: {place} is no run directory" in capsys.readouterr().err


def test_a_report_that_fails_fails_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run")
    (run / "report.html").mkdir()  # nothing can be put in its place
    assert make_report(run) is None
    assert capsys.readouterr().err.startswith("no report: ")
    assert make_report(tmp_path / "nothing") is None
    monkeypatch.setattr(page, "render", lambda path: {}[path])
    assert make_report(run) is None
    assert f"no report: KeyError: {run!r}; `python -m graft.report {run}` makes it" in capsys.readouterr().err


# --- searches --------------------------------------------------------------------------------------------------------


def row(number: int, lr: float, backbone: str, state: str, value: float | None, reason: str = "") -> dict[str, Any]:
    params = {"optim.lr": lr, "model.backbone": backbone}
    return {
        "number": number,
        "params": params,
        "state": state,
        "value": value,
        "reason": reason,
        "seconds": 2.0,
        "steps": 9,
    }


STUDY = {
    "trials": [
        row(0, 0.1, HOSTILE, "ok", 0.7),
        row(1, 0.01, "b", "ok", 0.6),
        row(2, 9.0, "b", "diverged", None, HOSTILE),
    ],
    "best": 1,
}
LESSONS = {
    "objective": "valid/loss", "maximize": False, "logarithmic": ["optim.lr"], "importances": SHARES,
    "epochs": {"step": 30, "last": 60, "wasted": 0.5, "noise": 0.01, "from_seeds": True},
    "curves": {"0": [[30, 0.9], [60, 0.7]], "1": [[30, 0.61], [60, 0.6]]}, "sentences": [f"gain: {HOSTILE}"],
}  # fmt: skip


def write_search(path: Path, lessons: dict[str, Any] | None = None) -> Path:
    write_run(path / "best")
    (path / "study.json").write_text(json.dumps(STUDY))
    if lessons:
        (path / "search.json").write_text(json.dumps(lessons))
    return path


def test_a_search_shows_its_trials_and_the_model_it_left(tmp_path: Path) -> None:
    html = render(write_search(tmp_path / "search", LESSONS))
    parsed = Text(html)
    titles = re.findall(r'<h2 id="([\w-]+)-title"', html)
    assert titles[-6:] == ["data", "trials", "parallel", "importance", "epochs", "settings"]
    assert parsed.tags.count("script") == 1
    for words in (
        "the model is right for 80.0 %",
        f"gain: {HOSTILE}",
        "1 best 0.01 b ok 0.6000 2.0 0 0.1",
        f"2 9 b diverged: {HOSTILE}",
        "The best trial gained nothing after step 30 of 60 (beyond 0.0100, two standard deviations over seeds).",
    ):
        assert words in parsed.text, words
    for figure in (
        "History: the objective of 2 trials",
        "Parallel coordinates: 2 trials",
        "Learning curves of 3 trials",
        "Importance of the keys",
    ):
        assert f'aria-label="{figure}' in html


def record_much(run: Path) -> None:
    """Records of a long training on a machine of 64 cores and 8 GPUs."""
    names = ["cpu_percent", *(f"cpu{core}_percent" for core in range(64)), "iowait_percent", "memory_percent"]
    names += ["disk_read_mb_s", "disk_write_mb_s", "net_mb_s"]
    names += [f"gpu{gpu}_{figure}" for gpu in range(8) for figure in ("percent", "memory_percent", "watts")]
    samples = np.random.default_rng(0).uniform(0, 100, (5000, len(names)))
    profiled = profiler_records.RecordWriter(run)
    profiled.write("samples", ["seconds", *names], np.column_stack([np.arange(5000) / 2, samples]).tolist())
    profiled.write_session(profiler_records.Facts(), dict.fromkeys(profiler_records.PHASES, 100.0))
    losses = [{"mode": mode, "step": step, "value": 1 + step % 7} for mode in ("TRAIN", "EVAL") for step in range(5000)]
    facts = debugger_records.Facts(num_classes=3, batch_size=4, steps_per_epoch=100)
    recorded = debugger_records.RecordWriter(run, facts, {"TRAIN": 0, "EVAL": 0})
    recorded.write("losses", columns("losses", losses))


def test_the_page_of_a_large_search_on_a_large_machine_stays_small(tmp_path: Path) -> None:
    keys = [f"optim.key_{key}" for key in range(8)]
    rng = np.random.default_rng(0)
    trials = [
        {**row(number, 0.1, "b", "ok", float(rng.random())), "params": dict(zip(keys, rng.random(8), strict=True))}
        for number in range(500)
    ]
    curves = {str(number): [[step, 1 / step] for step in range(1, 101)] for number in range(500)}
    search = write_search(tmp_path / "search", {**LESSONS, "curves": curves})
    record_much(search / "best")
    (search / "study.json").write_text(json.dumps({"trials": trials, "best": 1}))
    assert write_report(search).stat().st_size + page_photos.BUDGET < 3e6
    drawn = search_charts.curves_chart(read_search(search).trials, 1) or {}
    of_one = [row["step"] for row in drawn["data"]["values"] if row["trial"] == 7]
    assert of_one == [1, 26, 51, 75, 100]  # a thousand marks for 200 trials


def test_a_search_that_goes_on_shows_what_it_has(tmp_path: Path) -> None:
    search = tmp_path / "search"
    search.mkdir()
    (search / "study.journal").write_text("")
    assert "No trial has ended yet." in Text(render(search)).text
    (search / "study.json").write_text(json.dumps(STUDY))
    text = Text(render(search)).text
    assert "This search is not finished; what stands here" in text
    assert "1 best 0.01 b ok 0.6000" in text
    assert "Not ready to deploy: there is no accuracy yet. Why: this search has no model yet." in text


ONCE_MORE = "The same command with the same run_dir goes on."
FAILED = {"trials": [row(0, 9.0, "b", "failed", None), row(1, 9.0, "b", "diverged", None)], "best": None}


@pytest.mark.parametrize(
    ("study", "to_come", "lessons", "notice", "why"),
    [
        (STUDY, 5, None, f"This search is not finished: 5 trials are still to come; what stands here is "
         f"what it has so far. {ONCE_MORE}", "this search has no model yet"),
        (STUDY, 0, None, "The trials of this search have ended; what it says of them is still to come. "
         f"{ONCE_MORE}", "this search has no model yet"),
        (FAILED, 0, None, "All 2 trials of this search have ended, and none of them well: see their reasons.",
         "none of the 2 trials of this search ended well, so it has no model"),
        # time was up, and nothing is going on; more trials were asked for since
        (STUDY, 5, {**LESSONS, "left": 5}, None, "there is no model in best/ of this search"),
        (STUDY, 5, LESSONS, "This search is not finished: 5 trials are still to come",
         "this search has no model yet"),
        # of a tuning job the best is trained by a command of its own
        (STUDY, 0, LESSONS, None, "there is no model in best/ of this search"),
    ],
)  # fmt: skip
def test_a_search_without_a_model_says_how_far_it_is(
    tmp_path: Path, study: dict[str, Any], to_come: int, lessons: dict[str, Any] | None, notice: str | None, why: str
) -> None:
    (tmp_path / "study.json").write_text(json.dumps(study))
    (tmp_path / "progress.json").write_text(json.dumps({"to_come": to_come}))
    if lessons:
        (tmp_path / "search.json").write_text(json.dumps(lessons))
    text = Text(render(tmp_path)).text
    assert f"Why: {why}." in text
    assert (notice is None) is ("of this search have ended" not in text and "is not finished" not in text)
    assert notice is None or notice in text
    assert (ONCE_MORE in text) is (notice is not None and study is not FAILED)
    assert "This run is" not in text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("study.json", "{", "study.json cannot be read: Expecting property name"),
        ("search.json", "[]", "search.json cannot be read: it holds a list, not an object"),
        ("config.yaml", "a: [", "config.yaml cannot be read: while parsing a flow"),
    ],
)
def test_a_damaged_file_of_a_search_is_a_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    search = write_search(tmp_path / "search", LESSONS)
    (search / name).write_text(content)
    text = Text(render(search)).text
    assert sentence in text
    assert "the model is right for 80.0 %" in text
    # what cannot be read is not taken for what has not happened
    assert "This search is not finished" not in text
    assert "No trial has ended yet." not in text


@pytest.mark.parametrize(("say", "end"), [(True, "intervals."), (False, "intervals: too few trials to say.")])
def test_importances_that_say_nothing_are_told(tmp_path: Path, say: bool, end: str) -> None:
    html = render(write_search(tmp_path / "search", {**LESSONS, "importances_say": say}))
    assert f"with 95 % {end}" in Text(html).text
    assert ("too few trials to say" in Text(html).text) is not say


def test_trials_stand_best_first_whichever_way_is_better(tmp_path: Path) -> None:
    search = write_search(tmp_path / "search", LESSONS)
    assert [trial.number for trial in ordered(read_search(search))] == [1, 0, 2]
    (search / "search.json").write_text(json.dumps({**LESSONS, "maximize": True}))
    assert [trial.number for trial in ordered(read_search(search))] == [0, 1, 2]


def test_of_a_search_that_goes_on_its_configuration_says_which_way_is_better(tmp_path: Path) -> None:
    search = write_search(tmp_path / "search")
    assert [trial.number for trial in ordered(read_search(search))] == [1, 0, 2]
    (search / "config.yaml").write_text("search:\n  objective: valid/accuracy\n")
    assert [trial.number for trial in ordered(read_search(search))] == [0, 1, 2]
    assert read_search(search).objective == "valid/accuracy"


def test_write_report_is_atomic(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert write_report(run) == run / "report.html"
    assert not [path for path in run.iterdir() if path.name.startswith(".report")]
