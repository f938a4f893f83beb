"""The page of planned memory, from made rows."""

from __future__ import annotations

import pytest

from gcond.report import memory
from gcond.report.records import frame

P = 1000


def row(strategy, passes="shared", rows=2, reference=0, mean=1, momentum=0, optimizer=2, **others):
    """Parts in rows of P float32 numbers."""
    units = {"rows": rows, "reference": reference, "mean": mean, "momentum": momentum, "optimizer": optimizer}
    shapes = {"budget": "", "model": "m", "dataset": "ct", "image_size": 256, "precision": "fp32"}
    kind = {"form": "", "graph": "freed", "tasks": 2, "accumulation_steps": 24, "micro_batch": 256, "parameters": P}
    sizes = {"weights": 4 * P, "next_images": 0, "images_and_activations": 0, "peak": 100 * memory.MIB, "one": None}
    held = {name: int(4 * P * unit) for name, unit in units.items()}
    own = {"strategy": strategy, "passes": passes, "versions": "torch", "commit": "c"}
    return shapes | kind | sizes | held | own | others


def gcond(strategy="gcond_stochastic", **others):
    return row(strategy, "one task at a time", reference=2, mean=0, momentum=1, **others)


def page(rows):
    return memory.page(frame(rows, memory.COLUMNS))


def line(text, start):
    found = next(each for each in text.splitlines() if each.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_what_is_held_is_given_in_rows_and_equal_strategies_share_a_line():
    half = {"rows": 1, "reference": 1, "mean": 0, "momentum": 0.5}
    low = row("gcond_stochastic", "one task at a time", form="bfloat16 buffers", **half)
    text = page([row("pcgrad"), row("cagrad"), row("baseline", "joint", rows=1, mean=0), gcond(), low])
    assert line(text, "cagrad; pcgrad")[1:8] == ["float32", "2", "0", "1", "0", "2", "5"]
    assert line(text, "baseline")[2:8] == ["1", "0", "0", "0", "2", "3"]
    assert line(text, "gcond_stochastic | float32")[2:8] == ["2", "2", "0", "1", "2", "7"]
    assert line(text, "gcond_stochastic | bfloat16 buffers")[2:8] == ["1", "1", "0", "0.5", "2", "4.5"]


@pytest.mark.parametrize("ours", [100, 101])
def test_first_verdict_by_hand(ours):
    mib = memory.MIB
    rows = [row("baseline", "joint", peak=90 * mib)]
    rows += [row("pcgrad", tasks=m, peak=(90 + 10 * m) * mib) for m in (2, 3)]
    rows += [row("pcgrad", tasks=m, graph="kept", peak=(90 + 10 * m) * mib) for m in (2, 3)]
    rows += [row("pcgrad", accumulation_steps=k, peak=110 * mib) for k in (2, 8)]
    rows += [row("pcgrad", tasks=m, graph="kept until the next", peak=(140 + 20 * m) * mib) for m in (2, 3)]
    rows += [gcond(accumulation_steps=k, peak=size * mib) for k, size in ((2, 100), (8, 100), (24, ours))]
    rows += [gcond(tasks=3, peak=(ours + 4) * mib)]
    text = page(rows)
    assert ("The first half holds: GCond stochastic's peak does not depend on K (100 MB)" in text) == (ours == 100)
    assert ("The first half fails: GCond stochastic's peak depends on K (101 MB)" in text) == (ours == 101)
    assert "PCGrad's does not either" in text
    assert "The second half holds: a third task adds 4 MB to GCond stochastic (a row, a reference row)" in text
    assert "and 10 MB to PCGrad, 9.1 % of its peak" in text  # of 110 MB
    assert "20 MB where its graph lives until the next losses" in text
    assert "1.22 times Baseline with the graph freed, 1.22 with it kept through the last backward pass, 2.00" in text
    assert line(text, "gcond_stochastic | -")[1:] == ["-", "100", "100", str(ours), "-", "-", str(ours + 4), "-", "-"]


def test_second_verdict_follows_the_rows():
    base = {"budget": "16GB", "model": "convnextv2_base", "parameters": 90_000_000}
    peers = [row(name, **base, micro_batch=30, one=3_600_000_000) for name in memory.PEERS]
    ours = [gcond(**base, precision=kind, micro_batch=n, one=10**9) for kind, n in (("fp32", 29), ("bf16", 71))]
    text = page([*peers, *ours])
    assert "the peers do not fail at micro-batch 1, which takes at most 3.6 GB" in text
    assert "rows of 0.36 GB" in text
    assert "Half of it reproduced by the plan" in text
    assert "GCond at 70 fits: the largest planned at 256 pixels is 71 in bf16, 29 in fp32" in text
    assert "against 30 in fp32 for PCGrad" in text
    failing = page([row("pcgrad", **base, micro_batch=None, peak=None, one=17 * 10**9), ours[0]])
    assert "some of the peers' forms do fail at micro-batch 1" in failing
    assert "Half of it reproduced by the plan" in failing
    assert "GCond at 70 does not fit: the largest planned at 256 pixels is 29 in fp32" in failing
    assert "Not reproduced by the plan" in page([*peers, ours[0]])
    assert "none (17.0)" in failing


def test_table_4_beside_the_paper():
    tiny = {"budget": "16GB", "model": "convnext_tiny"}
    rows = []
    for kind, sizes in (("fp32", (100, 90, 50)), ("bf16", (200, 190, 110))):
        shape = tiny | {"precision": kind, "one": 10**9}
        rows += [row("baseline", "joint", **shape, micro_batch=sizes[0]), gcond(**shape, micro_batch=sizes[1])]
        rows += [row("pcgrad", **shape, micro_batch=sizes[1])]
        rows += [row("pcgrad", **shape, graph="kept until the next", micro_batch=sizes[2])]
    text = page(rows)
    assert line(text, "pcgrad")[1:] == ["float32", "90 / 50 (1.0)", "190 / 110 (1.0)", "96"]
    assert line(text, "baseline")[-1] == "170"
    assert "GCond stochastic 0.90 and 0.95 (0.95); PCGrad 0.90 and 0.95 with the graph freed, 0.50 and 0.55" in text
    assert "the paper's peers are nearest to those whose graph is alive until the next losses" in text


@pytest.mark.parametrize("grows", [0, 7])
def test_resnet_stands_apart_and_its_verdict_follows_the_rows(grows):
    mib = memory.MIB
    rows = [row("baseline", "joint", model="resnet50", accumulation_steps=k, peak=200 * mib) for k in memory.STEPS]
    rows += [gcond(model="resnet50", accumulation_steps=k, peak=(210 + grows * (k > 8)) * mib) for k in (2, 4, 8, 24)]
    rows += [row("pcgrad", model="resnet50", accumulation_steps=k, peak=(220 + 10 * (k > 1)) * mib) for k in (1, 2, 24)]
    text = page([row("baseline", "joint", peak=90 * mib), *rows])
    section = text.split("## ResNet-50")[1]
    assert "baseline holds the same from K = 1 to 24" in section
    assert ("gcond_stochastic holds the same from K = 2 to 24" in section) == (grows == 0)
    assert ("gcond_stochastic changes at K = 24, by at most 7 MB above K = 2" in section) == (grows == 7)
    assert "pcgrad changes at K = 2, by at most 10 MB above K = 1." in section
    assert line(section, "gcond_stochastic")[1:7] == [
        "-",
        "210",
        "210",
        "210",
        str(210 + grows),
        f"{(210 + grows) / 200:.3f}",
    ]
    assert line(section, "pcgrad")[1:6] == ["220", "230", "-", "-", "230"]
    assert line(text.split("## ResNet-50")[0].split("## M1")[1], "baseline")[4] == "90"
