# SPDX-License-Identifier: Apache-2.0
"""`nfcore bench` as a user meets it: every part runs, and nothing of it stays. No timing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nfcore.bench.cores import STEPS
from nfcore.bench.processes import ShowProgress, in_process
from nfcore.bench.results import Target
from nfcore.bench.run import choose_workload, profile_row
from nfcore.bench.sender import Sender
from nfcore.bench.sizes import Sizes
from nfcore.bench.testbed import CACHE, NETWORK, cold_cache, open_testbed
from nfcore.bench.traffic import make_frames
from tests.kernel.site import Site
from tests.paths import ROOT

pytestmark = pytest.mark.slow
NFCORE = [sys.executable, "-m", "nfcore.cli"]
PARTS = ("datapath", "cores", "live", "control", "rules")
PATIENCE = 120.0


def leftovers() -> dict[str, set[str]]:
    """What a bench could leave on this machine."""
    programs = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True, text=True).stdout
    return {
        "links": {link["ifname"] for link in json.loads(programs)},
        "folders": {str(path) for path in Path(tempfile.gettempdir()).glob("nfcore-bench-*")},
        "mounts": {line for line in Path("/proc/mounts").read_text().splitlines() if "nfcore" in line},
        "processes": {path.name for path in Path("/proc").iterdir() if b"nfcore-bench-" in command_line(path)},
    }


def command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    """The JSON and the page of one run of everything."""
    report = tmp_path_factory.mktemp("bench") / "report.html"
    before = leftovers()
    done = subprocess.run(
        [*NFCORE, "bench", "--smoke", "--json", "--report", str(report)],
        capture_output=True,
        text=True,
        check=False,
        timeout=5 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert f"[1/{done.stderr.count('[')}] datapath" in done.stderr
    assert leftovers() == before
    yield json.loads(done.stdout), report.read_text(encoding="utf-8")


def test_one_object_has_everything(smoke: tuple[dict[str, Any], str]) -> None:
    found, _ = smoke
    # tc_offload is measured where the kernel has flower, and says what is missing elsewhere.
    assert [each["part"] for each in found["skipped"]] in ([], ["rules, tc_offload"]) or os.cpu_count() == 1
    rows = {(row["row"], row["family"], row["flows"]) for row in found["datapath"]}
    assert {("noop", 4, 1), ("slow", 4, 100), ("flow-id", 4, 100), ("dest-id", 4, 100)} <= rows
    assert all(row["net_ns"] == row["ns"] - row["floor_ns"] for row in found["datapath"])
    assert {gain["row"]: gain["published_percent"] for gain in found["gains"] if gain["cores"] == 1} == {
        "flow-id": 40.0,
        "dest-id": 40.0,
    }
    names = " ".join(figure["name"] for figure in found["control"])
    for word in (
        "through the engine",
        "memory of a flow",
        "p50",
        "p99",
        "ring of",
        "cold",
        "warm",
        "ready with",
        "metrics scraped once a second",
    ):
        assert word in names
    assert {figure["unit"] for figure in found["control"]} == {"1/s", "B", "ms", "s", "% of a core"}
    assert {(rate["backend"], rate["op"]) for rate in found["rules"]} >= {
        ("softnic", op) for op in ("insert", "dump", "delete")
    }
    assert all(rate["per_s"] > 0 for rate in found["rules"])
    assert found["machine"]["load_average"]
    assert {"met", "value", "limit"} <= found["targets"][0].keys()


def test_live_packets_take_the_way_that_they_are_said_to(smoke: tuple[dict[str, Any], str]) -> None:
    rows = {row["path"]: row for row in smoke[0]["live"]}
    assert rows["unmarked"]["marked_share"] == 0.0
    assert rows["marked"]["marked_share"] == pytest.approx(1.0, abs=0.02)
    for row in rows.values():
        assert 0 < row["received"] <= row["sent"]


def test_cores_share_the_work(smoke: tuple[dict[str, Any], str]) -> None:
    cores = {row["cores"] for row in smoke[0]["cores"]}
    assert max(cores, default=1) == min(len(os.sched_getaffinity(0)), STEPS[-1])


def test_the_page_is_written(smoke: tuple[dict[str, Any], str]) -> None:
    found, page = smoke
    assert page.count("<svg") >= 3
    for part in ("Targets", "Datapath", "Control", "Rules", "Machine"):
        assert f"{part}" in page
    assert found["machine"]["cpu"] in page


def test_a_part_alone_for_people(tmp_path: Path) -> None:
    report = tmp_path / "rules.html"
    done = subprocess.run(
        [*NFCORE, "bench", "--smoke", "--parts", "rules", "--report", str(report)],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert "softnic" in done.stdout
    assert "Datapath" not in done.stdout
    assert f"report: {report}" in done.stdout
    assert "softnic" in report.read_text(encoding="utf-8")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_bench_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    before, report = leftovers(), tmp_path / "report.html"
    bench = subprocess.Popen(
        [*NFCORE, "bench", "--quick", "--parts", "live", "--report", str(report)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not leftovers()["processes"] - before["processes"] and time.monotonic() < deadline:
            assert bench.poll() is None, bench.stderr and bench.stderr.read()
            time.sleep(0.05)
        # As a terminal does: the whole group gets it. And impatient people do it twice.
        os.killpg(bench.pid, number)
        time.sleep(0.05)
        os.killpg(bench.pid, number)
        out, error = bench.communicate(timeout=PATIENCE)
    finally:
        if bench.poll() is None:
            os.killpg(bench.pid, signal.SIGKILL)
    assert bench.returncode == 130
    assert "Traceback" not in out + error
    assert leftovers() == before
    assert not report.exists()


def count_frames(show_progress: ShowProgress) -> tuple[int, int, int]:
    """Frames sent, received and sent again, through a NIC whose host takes none."""
    _, workload = choose_workload(None)
    frames = make_frames(np.arange(3), workload.services(4, 4), 4)
    with open_testbed() as site, Sender(NETWORK, frames) as sender:
        before = site.received()
        sent, _ = sender.send_for(5.0, most=1000)
        again, _ = sender.send_for(0.0)
        return sent, again, site.received() - before


def test_the_sender_keeps_its_bounds() -> None:
    assert in_process(count_frames) == (1000, 0, 0)


def cached_files(show_progress: ShowProgress) -> tuple[bool, bool]:
    with open_testbed():
        (CACHE / "mark").touch()
        try:
            with cold_cache():
                hidden = not (CACHE / "mark").exists()
            return hidden, (CACHE / "mark").exists()
        finally:
            (CACHE / "mark").unlink()


def test_the_cache_is_hidden_and_comes_back() -> None:
    assert in_process(cached_files) == (True, True)


def start_what_cannot(show_progress: ShowProgress) -> str:
    with open_testbed() as site:
        config = site.config("katran_accel", "[katran_accel]\nvips = []")
        with site.daemon(config):
            return "ready"


def test_a_daemon_that_does_not_start_says_why() -> None:
    with pytest.raises(Exception, match=r"daemon ended with status 2: .*katran_accel.vips"):
        in_process(start_what_cannot)


# The deployed program, timed by anybody


def test_whatever_is_pinned_can_be_timed(site: Site, _one_cpu: None) -> None:
    guide = (ROOT / "docs/benchmark.md").read_text(encoding="utf-8")
    listed = guide.partition("| pin | is |")[2].partition("\n\n")[0]
    names = {name for line in listed.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    with site.running(site.config(katran=f'pin_dir = "{site.pins}"')):
        # bpffs has two files of its own with a dot in their names.
        pinned = {path.name for path in site.pins.iterdir() if "." not in path.name}
        other_strategys = {"hw_accel_mapping", "markid_pool_mapping"}
        assert names - other_strategys <= pinned | {f"lru_{cpu}" for cpu in range(2)}
        assert {name for name in pinned if not name.startswith("lru_")} <= names
        (recipe,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
        recipe = recipe.replace("/run/nfcore/bpf/lb", str(site.pins))
        done = subprocess.run([sys.executable, "-c", recipe], check=True, capture_output=True, text=True)
    assert re.fullmatch(r"\d+ ns per packet\n", done.stdout)


def test_the_help_of_run_names_pins(site: Site) -> None:
    text = subprocess.run([*NFCORE, "run", "--help"], check=True, capture_output=True, text=True).stdout
    with site.running(site.config(katran=f'pin_dir = "{site.pins}"')):
        names = [path.name for path in site.pins.iterdir() if re.search(rf"\b{path.name}\b", text)]
    assert {"balancer_ingress", "vip_map", "lru_0", "stats"} <= set(names)


def profile_of_slow(show_progress: ShowProgress) -> str:
    _, workload = choose_workload(None)
    workload.prepare((4,))
    bar = Target("slow", 2.0, 1.0, "", about=("slow", 4, 100))
    return profile_row(workload, Sizes.smoke(), bar, show_progress)


def test_a_row_that_is_too_slow_is_profiled() -> None:
    words = in_process(profile_of_slow)
    assert "balancer" in words if shutil.which("perf") else words == ""
