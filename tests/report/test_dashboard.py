"""`python -m gcond.report.dashboard`: the data in the page against hand-made folders; the page in a browser."""

import base64
import fcntl
import hashlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gcond.report.dashboard import pictures
from gcond.report.dashboard.__main__ import main
from gcond.report.dashboard.metrics import bin_means, bin_width, read_metrics, short

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
TRIVIAL = {"dataset_mean": 0.9, "visible_mean": 0.7}
COLUMNS = ["original", "masked", "raw prediction", "pasted"]
SCORES = ("val_l1", "val_ssim", "test_l1", "test_ssim")
DONE = ("done", "")


def make_run(
    runs: Path,
    strategy: str = "pcgrad",
    seed: int = 11,
    *,
    steps: int = 8,
    epochs: int = 2,
    dataset: str = "photos",
    model: str = "mobilenetv3_small",
    scale: str = "mini",
    variant: str = "",
    outcome: tuple[str, str] | None = DONE,
    width: int = 0,
    **more: object,
) -> Path:
    """A run's folder as the engine leaves it, with random numbers; `outcome` None: not ended; `width`: of a picture."""
    mark = hashlib.sha256(f"{variant}{more.get('started')}{seed}".encode()).hexdigest()[:10]
    folder = runs / scale / f"{dataset}-{model}-{strategy}-seed{seed}-{mark}"
    folder.mkdir(parents=True)
    draw = np.random.default_rng([seed, len(variant), *strategy.encode()])
    records, validation = [], []
    for step in range(steps):
        fade = np.exp(-3 * step / steps)
        record = {"kind": "step", "step": step, "lr": 1e-3, "grad_norm/l1": 1.0, "weight/l1": 1.0}
        record |= {"loss/l1": 0.4 + fade + 0.05 * draw.normal(), "loss/ssim": 0.6 + fade / 3 + 0.03 * draw.normal()}
        if strategy != "baseline" or step % 4 == 0:
            for group in ("all", "encoder", "body", "head"):
                record[f"cosine/{group}"] = 0.2 * draw.normal()
                record[f"cosine_resolved/{group}"] = abs(0.2 * draw.normal())
            record |= {"resolved": float(step % 2), "correction": abs(draw.normal()) if step % 5 else None}
        if strategy.startswith("gcond"):
            record |= {f"zone/{zone}": float(draw.integers(3)) for zone in ("weak", "main", "critical")}
        records.append(record)
        if (step + 1) % (steps // epochs) == 0:
            scores = {name: 0.5 + 0.3 * fade + 0.01 * draw.normal() for name in ("val_l1", "val_ssim")}
            scores |= dict.fromkeys(("test_l1", "test_ssim"), 0.9)
            validation.append({"epoch": len(validation) + 1, "step": step + 1} | scores)
            records.append({"kind": "validation"} | validation[-1])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\ndataset:\n  name: {dataset}\nmodel:\n  name: {model}\nstrategy:\n  name: {strategy}\n"
        f"  label: The {strategy}\nscale:\n  name: {scale}\n  epochs: {epochs}\n  steps_per_epoch: {steps // epochs}\n"
        f"  variant: '{variant}'\n"
    )
    (folder / ".lock").touch()
    if outcome:
        status, error = outcome
        content = {"schema": 1, "name": folder.name, "hash": mark, "scale": scale, "dataset": dataset}
        content |= {"dataset_title": f"{dataset} (synthetic)", "model": model, "strategy": strategy, "seed": seed}
        content |= {"variant": variant, "status": status, "error": error, "commit": "a" * 40, "dirty": False}
        content |= {"device": "CPU", "torch": "2.14.1", "python": "3.11.9", "started": "2025-03-04T05:06:07+00:00"}
        content |= {"seconds": 30.0 + seed / 7, "steps": steps, "epochs": epochs, "validation": validation}
        content |= {"trivial": {name: dict.fromkeys(SCORES, value) for name, value in TRIVIAL.items()}}
        (folder / "report.json").write_text(json.dumps(content | more))
        (folder / ("DONE" if status == "done" else "FAILED")).write_text(error)
    if width:
        for step in (steps // 2, steps):
            add_picture(folder, step, width)
    return folder


def add_picture(folder: Path, step: int, width: int) -> Path:
    """Two rows of four tiles: a gradient with noise, tinted by `step`."""
    path = folder / "reconstructions" / f"{step:08}.png"
    path.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(step).integers(0, 40, (width // 2, width, 3))
    tiles = noise + np.linspace(0, 200, width)[None, :, None] + [step % 30, 0, 10]
    Image.fromarray(tiles.astype(np.uint8)).save(path)
    caption = {"step": step, "epoch": 2, "columns": COLUMNS, "images": 2}
    path.with_suffix(".json").write_text(json.dumps(caption))
    return path


def make_many(runs: Path, count: int, steps: int = 96, width: int = 256) -> None:
    """`count` runs of 20 methods on two data sets, one in ten of them failed, unfinished or a variant."""
    methods = ["baseline", "cagrad", "graddrop", "gradnorm", "pcgrad", "gcond_sequential", "gcond_stochastic"]
    methods += ["gcond_pure", "gcond_lion", "baseline_integrated", "gradops", "sam_gs", "upgrad", "mgda", "nash_mtl"]
    methods += ["aligned_mtl", "imtl_g", "fairgrad", "uw", "dwa"]
    for index in range(count):
        dataset = ("photos", "ct")[index % 2]
        strategy = methods[index // 2 % len(methods)]
        seed = (11, 42, 2025, 7, 8)[index // 40 % 5] + 10_000 * (index // 200)
        outcome = {3: ("failed", "FloatingPointError: `loss/ssim` is nan at step 17"), 13: None}.get(index % 29, DONE)
        variant = "optimizer.lr=1e-3" if index % 29 == 23 else ""
        wide = width if dataset == "photos" else 0
        made = {"dataset": dataset, "variant": variant, "outcome": outcome, "width": wide}
        make_run(runs, strategy, seed, steps=steps, epochs=6, **made)


class Page(HTMLParser):
    """What a browser's parser takes from the page: the tags with their attributes, and the text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.feed(path.read_text(encoding="utf-8"))
        self.data = json.loads(self.scripts[0])

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag == "script"
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            self.scripts[-1] += data


@pytest.fixture
def page(tmp_path, capsys):
    """page() -> the page made of tmp_path/runs."""

    def make(*arguments: str) -> Page:
        assert main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "page.html"), *arguments]) == 0
        assert "written: " in capsys.readouterr().out
        return Page(tmp_path / "page.html")

    return make


def values(folder: Path, key: str, kind: str = "step") -> np.ndarray:
    """What a run logged of `key`, by numpy alone."""
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return np.array([record.get(key) for record in records if record["kind"] == kind], dtype=float)


def one(page: Page, folder: Path) -> dict:
    (found,) = [run for run in page.data["runs"] if run["folder"] == f"{folder.parent.name}/{folder.name}"]
    return found


def test_means_are_over_the_finished_seeds_of_one_method(tmp_path, page):
    runs = tmp_path / "runs"
    finished = [make_run(runs, seed=seed) for seed in (11, 42, 2025)]
    make_run(runs, seed=7, outcome=("failed", "ValueError: no"))
    make_run(runs, seed=8, outcome=None)
    make_run(runs, seed=11, variant="optimizer.lr=1e-2")
    make_run(runs, "cagrad")
    (group,) = page().data["groups"]
    cagrad, plain, variant = group["series"]
    assert [one["label"] for one in group["series"]] == ["CAGrad", "PCGrad", "PCGrad [optimizer.lr=1e-2]"]
    assert (plain["n"], plain["others"], plain["seeds"]) == (3, 2, [11, 42, 2025])
    assert (variant["n"], cagrad["n"]) == (1, 1)
    assert len({(one["colour"], one["dash"]) for one in group["series"]}) == 3
    expected = np.mean([values(folder, "loss/l1") for folder in finished], axis=0)
    assert plain["points"]["loss/l1"] == pytest.approx(expected, rel=1e-3)
    expected = np.mean([values(folder, "val_ssim", "validation") for folder in finished], axis=0)
    assert plain["validation"]["val_ssim"] == pytest.approx(expected, rel=1e-3)
    assert plain["validation"]["step"] == [4, 8]
    assert group["trivial"] == {"val_l1": 0.7, "val_ssim": 0.7}


def test_a_mean_ends_where_one_of_its_seeds_does(tmp_path, page):
    folders = [make_run(tmp_path / "runs", seed=11, steps=8), make_run(tmp_path / "runs", seed=42, steps=8)]
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folders[1] / "metrics.jsonl").write_text("".join(lines[:5]))  # four steps and the first validation
    (series,) = page().data["groups"][0]["series"]
    assert len(series["points"]["loss/l1"]) == 4
    assert series["validation"]["step"] == [4]
    both = np.mean([values(folder, "loss/l1")[:4] for folder in folders], axis=0)
    assert series["points"]["loss/l1"] == pytest.approx(both, rel=1e-3)


def test_long_runs_are_drawn_as_means_over_equal_bins(tmp_path, page):
    long, brief = make_run(tmp_path / "runs", steps=1001, epochs=1), make_run(tmp_path / "runs", "cagrad", steps=12)
    found = page()
    (group,) = found.data["groups"]
    assert group["width"] == 6  # 1001 / 6 = 166.8 points; 5 would make 201
    logged = values(long, "cosine/all")
    points = one(found, long)["points"]["cosine/all"]
    assert len(points) == len(group["x"]) == 167
    assert points[0] == pytest.approx(logged[:6].mean(), rel=1e-3)
    assert points[-1] == pytest.approx(logged[996:].mean(), rel=1e-3)
    assert (group["x"][0], group["x"][-1]) == (2.5, 998)  # steps 0..5 and 996..1000
    assert len(one(found, brief)["points"]["cosine/all"]) == 2  # the same bins as the run beside it
    assert one(found, long)["conflict_share"] == pytest.approx((logged < 0).mean(), rel=1e-3)


def test_what_is_logged_at_some_steps_only_says_at_which(tmp_path, page):
    folder = make_run(tmp_path / "runs", "baseline", steps=8)
    points = one(page(), folder)["points"]
    assert points["cosine/all"]["at"] == [0, 4]
    assert points["cosine/all"]["y"] == pytest.approx(values(folder, "cosine/all")[[0, 4]], rel=1e-3)
    assert points["correction"] == {"at": [0, 4], "y": [None, short(values(folder, "correction")[4])]}
    assert "grad_norm/l1" not in points


def test_bins_leave_undefined_numbers_out():
    at, logged = np.array([0, 1, 2, 3, 9]), np.array([1, np.nan, np.nan, np.nan, 5.0])
    found = bin_means(at, logged, 2)
    assert list(found) == [0, 1, 4]
    assert (found[0], found[4]) == (1, 5)
    assert np.isnan(found[1])
    assert [bin_width(steps) for steps in (0, 1, 200, 201, 10_000)] == [1, 1, 1, 2, 50]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.123456, 0.1235), (123456.0, 123500), (1e-9, 1e-9), (True, None), ("7", None), (float("inf"), None), (7, 7)],
)
def test_numbers_have_four_digits(value, expected):
    assert short(value) == expected


def test_every_state_of_a_folder_is_shown_with_its_reason(tmp_path, page):
    runs = tmp_path / "runs"
    done = make_run(runs, "pcgrad")
    failed = make_run(runs, "cagrad", outcome=("failed", "ValueError: first line\nsecond line"))
    silent = make_run(runs, "uw", outcome=None)
    (silent / "FAILED").write_text("RuntimeError: before any report\n")
    stopped = make_run(runs, "dwa", outcome=None)
    again = make_run(runs, "famo", outcome=("failed", "ValueError: first attempt"))
    (again / "FAILED").unlink()
    torn = make_run(runs, "mgda")
    (torn / "report.json").write_text('{"schema": 1, "stat')
    odd = make_run(runs, "imtl_g")
    (odd / "report.json").write_text("[1, 2]")
    other = make_run(runs, "gradops", schema=2)
    empty = runs / "mini" / "photos-m-config-seed1-0123456789"
    empty.mkdir()
    named = make_run(runs, "uw", seed=42).rename(runs / "mini" / "my-run")
    old = make_run(runs, "graddrop", started="2025-01-01T00:00:00+00:00")
    new = make_run(runs, "graddrop", started="2025-01-02T00:00:00+00:00")
    bad = make_run(runs, "sam_gs", outcome=None)
    (bad / "config.yaml").write_text("a: [")
    (runs / "sweeps" / "today").mkdir(parents=True)
    expected = {
        done: ("done", ""),
        named: ("done", ""),
        failed: ("failed", "ValueError: first line\nsecond line"),
        silent: ("failed", "RuntimeError: before any report"),
        stopped: ("unfinished", "neither report.json nor FAILED"),
        again: ("unfinished", "had failed with: ValueError: first attempt"),
        torn: ("damaged", "report.json: expected a JSON object"),
        odd: ("damaged", "expected a JSON object, found list"),
        other: ("damaged", "`schema`: expected 1, found 2"),
        empty: ("damaged", "neither config.yaml nor metrics.jsonl"),
        old: ("superseded", f"repeated later as mini/{new.name}"),
        new: ("done", ""),
        bad: ("unfinished", "neither report.json nor FAILED"),
    }
    found = page()
    assert len(found.data["runs"]) == len(expected)
    for folder, (status, reason) in expected.items():
        run = one(found, folder)
        assert (run["status"], reason in run["reason"]) == (status, True), run
    for folder in (failed, stopped):  # what was reached, but no best epoch of a run that has not finished
        last = short(values(folder, "val_l1", "validation")[-1])
        assert (one(found, folder)["last_val_l1"], one(found, folder)["best_val_l1"]) == (last, None)
    assert "config.yaml cannot be read" in one(found, bad)["notes"][0]
    assert one(found, empty)["strategy"] == "config"
    assert "group" not in one(found, old)
    assert one(found, stopped)["planned"] == 8


def test_a_run_whose_lock_is_held_is_running(tmp_path, page):
    folder = make_run(tmp_path / "runs", outcome=None)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if Path("/proc/locks").exists():
            assert one(page(), folder)["status"] == "running"
    assert one(page(), folder)["status"] == "unfinished"


def test_a_run_that_has_not_ended_joins_those_with_its_settings(tmp_path, page):
    runs = tmp_path / "runs"
    finished = make_run(runs, seed=11, variant="optimizer.lr=1e-2")
    going = make_run(runs, seed=42, variant="optimizer.lr=1e-2", outcome=None)
    other = make_run(runs, seed=42, variant="threads=2", outcome=None)
    found = page()
    places = [one(found, folder)["series"] for folder in (finished, going, other)]
    assert places[0] == places[1] != places[2]
    assert one(found, going)["variant"] is None


def test_only_the_last_line_of_the_logbook_may_be_half_written(tmp_path):
    path = make_run(tmp_path / "runs") / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "step", "step": 8, "loss/l1": 0.')
    found = read_metrics(path)
    assert (found.reached, len(found.steps["loss/l1"][0])) == (8, 8)
    assert "half written" in found.notes[0]
    assert read_metrics_of(path, whole).notes == ()
    lines = whole.split(b"\n")
    lines[2] = lines[2][:30]
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 3: "):
        read_metrics_of(path, b"\n".join(lines))


def test_records_that_are_not_drawn_are_passed_over(tmp_path):
    path = make_run(tmp_path / "runs") / "metrics.jsonl"
    whole, found = path.read_bytes(), read_metrics(path)
    more = b'{"kind": "probe", "step": 8, "cosine/all": 0.5}\n{"kind": "activations", "step": 8, "std": 1.0}\n'
    more += b'{"kind": "final", "at": "best", "step": 8, "val_l1": 0.5}\n{"kind": "groups", "step": 8, "groups": {}}\n'
    again = read_metrics_of(path, whole + more)
    assert (again.reached, again.validation, again.notes) == (found.reached, found.validation, found.notes)
    assert set(again.steps) == set(found.steps)
    assert len(again.steps["cosine/all"][0]) == len(found.steps["cosine/all"][0])
    with pytest.raises(
        ValueError, match=r"line \d+: .*`kind` is 'prob', allowed: step, validation, probe, activations"
    ):
        read_metrics_of(path, whole + b'{"kind": "prob", "step": 8}\n' + more)


def read_metrics_of(path: Path, raw: bytes):
    path.write_bytes(raw)
    return read_metrics(path)


def test_a_broken_logbook_costs_a_finished_run_its_curves_only(tmp_path, page):
    folder = make_run(tmp_path / "runs")
    (folder / "metrics.jsonl").write_text('not json\n{"kind": "step", "step": 0}\n')
    run = one(page(), folder)
    assert (run["status"], run["points"]) == ("done", {})
    assert run["best_val_l1"] == short(json.loads((folder / "report.json").read_text())["validation"][-1]["val_l1"])
    assert "no curves: metrics.jsonl, line 1" in run["notes"][0]


EVIL = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)> {{script}} \u2028 & -->'


def test_texts_from_files_stay_texts(tmp_path, page):
    folder = make_run(tmp_path / "runs", outcome=("failed", EVIL), variant="<b>x</b>", device="\udcff")
    found = page()
    assert one(found, folder)["reason"] == EVIL
    assert one(found, folder)["variant"] == "<b>x</b>"
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert not [tag for tag, _ in found.tags if tag in ("img", "b")]
    assert "<" not in found.scripts[0]


def test_nothing_comes_from_elsewhere(tmp_path, page):
    make_run(tmp_path / "runs", width=32)
    found = page()
    text = (tmp_path / "page.html").read_text()
    assert not re.findall(r"https?://|url\(|@import|\bfetch\(|XMLHttp|WebSocket", text)
    assert not [(tag, name) for tag, own in found.tags for name in own if name in ("src", "href", "style", "onclick")]
    assert "default-src 'none'" in text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(", found.scripts[1])


def test_the_last_picture_of_a_run_is_in_the_page(tmp_path, page):
    folder = make_run(tmp_path / "runs", width=32)
    found = page()
    picture = one(found, folder)["picture"]
    assert (picture["step"], picture["epoch"], picture["columns"], picture["note"]) == (8, 2, COLUMNS, "")
    assert decoded(picture) == (folder / "reconstructions" / "00000008.png").read_bytes()
    assert "1 earlier ones" in found.data["pictures_left_out"][0]


def decoded(picture: dict) -> bytes:
    return base64.b64decode(picture["data"].split(",", 1)[1])


def test_pictures_are_made_smaller_or_left_out_and_the_page_says_so(tmp_path, page, monkeypatch):
    folders = [make_run(tmp_path / "runs", name, seed, width=700) for seed in (11, 42) for name in ("uw", "dwa")]
    large = decoded(one(page(), folders[0])["picture"])
    with Image.open(io.BytesIO(large)) as image:
        assert image.size == (640, 320)
    monkeypatch.setattr(pictures, "BUDGET_BYTES", int(2.5 * len(large)))
    found = page()
    kept = [folder for folder in folders if "picture" in one(found, folder)]
    assert kept == folders[:2]  # one seed of each method rather than both of one
    assert "JPEG" in one(found, kept[0])["picture"]["note"]
    assert "2 runs' pictures are left out" in " ".join(found.data["pictures_left_out"])

    (folders[0] / "reconstructions" / "00000008.png").write_bytes(b"\x89PNG broken")
    found = page()
    assert "picture" not in one(found, folders[0])
    assert folders[0].name in " ".join(found.data["pictures_left_out"])


def test_several_commits_and_devices_are_called_out(tmp_path, page):
    runs = tmp_path / "runs"
    make_run(runs, seed=11)
    assert page().data["groups"][0]["notices"] == []
    make_run(runs, seed=42, commit="b" * 40, device="a GPU", dirty=True)
    make_run(runs, seed=2025, steps=12)
    notices = " ".join(page().data["groups"][0]["notices"])
    assert "several commits, so their numbers may not be compared: aaaaaaaaaa (2), bbbbbbbbbb (1)" in notices
    assert "several devices" in notices
    assert "differ in length, in optimizer steps: 12 (1), 8 (2)" in notices
    assert "1 of them ran from a working tree with uncommitted changes" in notices


def test_skipped_steps_are_shown_where_they_are_recorded(tmp_path, page):
    runs = tmp_path / "runs"
    folders = [make_run(runs, seed=11, skipped_steps=3), make_run(runs, seed=42)]
    folders.append(make_run(runs, "cagrad", outcome=None))
    with (folders[-1] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 8, "skipped": "loss/l1", "loss/l1": null}\n')
    found = page()
    assert [one(found, folder)["skipped_steps"] for folder in folders] == [3, 0, 1]
    assert one(found, folders[-1])["points"]["loss/l1"][8] is None


def test_a_series_of_its_own_look_for_every_variant(tmp_path, page):
    for variant in ("", *(f"optimizer.lr={rate}" for rate in range(7))):
        for strategy in ("baseline", "baseline_integrated", "uw", "dwa"):
            make_run(tmp_path / "runs", strategy, variant=variant, steps=2, epochs=1)
    series = page().data["groups"][0]["series"]
    assert len({(one["colour"], one["dash"]) for one in series}) == len(series) == 32


def test_scales_data_sets_and_models_never_share_a_plot(tmp_path, page):
    runs = tmp_path / "runs"
    make_run(runs)
    for other in ({"scale": "smoke"}, {"dataset": "ct"}, {"model": "convnext_tiny"}):
        make_run(runs, **other)
    found = page()
    assert [scale["name"] for scale in found.data["scales"]] == ["mini", "smoke"]
    groups = [(group["scale"], group["dataset"], group["model"]) for group in found.data["groups"]]
    assert len(groups) == len(set(groups)) == 4
    assert sorted(run["group"] for run in found.data["runs"]) == [0, 1, 2, 3]


def test_many_runs_get_fewer_points_each(tmp_path, page, monkeypatch):
    for seed in (11, 42):
        make_run(tmp_path / "runs", seed=seed, steps=1000)
    monkeypatch.setattr("gcond.report.dashboard.page.FULL_DETAIL_RUNS", 1)
    found = page()
    assert (found.data["points"], len(found.data["groups"][0]["x"])) == (100, 100)


def test_local_runs_come_before_recorded_ones(tmp_path, page):
    make_run(tmp_path / "runs")
    found = page("--recorded", str(ROOT / "results"))
    assert (len(found.data["runs"]), found.data["recorded"]) == (1, False)


def test_a_recorded_file_that_cannot_be_read_is_named(tmp_path, page):
    (tmp_path / "results" / "mini").mkdir(parents=True)
    (tmp_path / "results" / "mini" / "runs.csv").write_text("a,b\n1,2\n")
    found = page("--recorded", str(tmp_path / "results"))
    assert "runs.csv was left out" in found.data["remarks"][0]


def test_the_command_names_the_page_and_its_counts(tmp_path, capsys):
    make_run(tmp_path / "runs", width=32)
    make_run(tmp_path / "runs", "cagrad", outcome=("failed", "ValueError: no"))
    assert main(["--runs", str(tmp_path / "runs")]) == 0
    line = capsys.readouterr().out
    assert str(tmp_path / "runs" / "dashboard.html") in line
    assert "1 done, 1 failed; 1 pictures" in line


def test_a_folder_of_one_scale_is_refused(tmp_path, capsys):
    make_run(tmp_path / "runs")
    assert main(["--runs", str(tmp_path / "runs" / "mini")]) == 2
    assert f"--runs {tmp_path / 'runs'}" in capsys.readouterr().err


def drawn(path: Path, choices: str = "", size: str = "1280,800") -> tuple[dict[str, str], str]:
    """The page as a browser draws it with `choices` after the "#": what it says of itself, and its whole text."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}", "--dump-dom"]
    command += [f"{path.as_uri()}#{choices}"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return dict(re.findall(r'data-(\w+)="([^"]*)"', text.split("<head>")[0])), text


def table_column(text: str, number: int) -> list[str]:
    """Texts of a column of the table of runs."""
    rows = re.findall(r"<tr[^>]*data-folder.*?</tr>", text, re.DOTALL)
    return [re.sub("<[^>]*>", " ", re.findall(r"<td.*?</td>", row, re.DOTALL)[number]).strip() for row in rows]


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")
class TestInABrowser:
    def test_nothing(self, tmp_path, page):
        page()
        about, text = drawn(tmp_path / "page.html")
        assert (about["drawn"], about["rows"], "error" in about) == ("yes", "0", False)
        assert "<title>gcond runs</title>" in text
        assert re.search(r'<section id="empty">\s*<h2>No runs yet', text)

    def test_one_run_with_hostile_texts(self, tmp_path, page):
        folder = make_run(tmp_path / "runs", variant="<i>v</i>", outcome=("failed", EVIL), width=32)
        assert (folder / "FAILED").exists()
        page()
        about, text = drawn(tmp_path / "page.html", size="420,800")
        assert (about["drawn"], about["rows"], "error" in about) == ("yes", "1", False)
        assert "<title>gcond runs, scale mini (not evidence)</title>" in text
        assert "<i>" not in text
        assert "&lt;i&gt;v&lt;/i&gt;" in text
        assert len(re.findall("<img", text)) == 1

    def test_two_hundred_runs_filtered_sorted_and_chosen(self, tmp_path, page):
        make_many(tmp_path / "runs", 200)
        found = page()
        path = tmp_path / "page.html"
        assert path.stat().st_size < 15e6
        about, _ = drawn(path)
        assert (about["rows"], about["plots"], "error" in about) == ("200", "17", False)

        expected = [run for run in found.data["runs"] if run["status"] == "failed"]
        about, text = drawn(path, "status=failed")
        assert about["rows"] == str(len(expected)) == "7"
        assert "is nan at step 17" in table_column(text, 0)[0]

        numbers = [run["best_val_l1"] for run in found.data["runs"] if run["strategy"] == "pcgrad"]
        _, text = drawn(path, "text=PCGrad&sort=best_val_l1&down=1")
        column = table_column(text, 6)
        ordered = sorted((value for value in numbers if value is not None), reverse=True)
        assert column == [f"{value:.4f}" for value in ordered] + [""] * numbers.count(None)

        folder = next(run["folder"] for run in found.data["runs"] if run["strategy"] == "mgda" and run["points"])
        about, text = drawn(path, f"run={folder}")
        assert 'class="chosen"' in text
        assert f"<dd>{folder}</dd>" in text

        every = ",".join(str(index) for index in range(len(found.data["groups"][0]["series"])))
        about, _ = drawn(path, "group=0&single=1")
        assert int(about["lines"]) > 1000
        about, _ = drawn(path, f"group=0&single=1&off={every}")
        assert about["lines"] == "0"
