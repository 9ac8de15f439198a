"""The server's process is killed, paused, starved of memory, and its clock jumps."""

from __future__ import annotations

import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.admin import load
from benchmarks.chaos.arm import PATIENT, Arm
from benchmarks.chaos.lab import Lab, Outcome, another_version, open_files, until
from chunkcast.client import ChunkcastError

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def killed(lab: Lab) -> Outcome:
    """``kill -9`` in mid-episode, and a restart: the arm comes to rest, reconnects, and the episode goes on."""
    outcome = Outcome()
    with lab.served() as served, Arm(served.address) as arm:
        broken = time.monotonic()
        served.kill()
        served.start()
        arm.wait_for_chunks(20)
        seconds = arm.timeline.resumed_after(served.ready_at)
    outcome.facts = arm.timeline.summary(broken)
    outcome.facts["restart_s"] = round(served.ready_at - broken, 3)
    outcome.facts["resumed_after_ready_s"] = None if seconds is None else round(seconds, 3)
    outcome.check("the arm rested while there was no server", outcome.facts["rested_since"] > 0)
    outcome.check_controlled()
    outcome.check("it had a chunk again", seconds is not None)
    return outcome


def killed_and_set_to_stop(lab: Lab) -> Outcome:
    """The same of an arm that may rest for 10 ticks only: it is stopped, and plays when it may again."""
    outcome = Outcome()
    config = replace(PATIENT, max_starved_ticks=10)
    with lab.served() as served, Arm(served.address, config=config) as arm:
        broken = time.monotonic()
        served.kill()
        until(lambda: arm.timeline.summary()["ticks"]["stopped"] > 0, "the arm's stop")
        stopped = next(tick.at for tick in arm.timeline.ticks if tick.did == "stopped")
        served.start()
        arm.wait_for_chunks(20)
    outcome.facts = arm.timeline.summary(broken)
    outcome.facts["stopped_after_s"] = round(stopped - broken, 3)
    runs = outcome.facts["runs"]
    first = next(index for index, (did, _) in enumerate(runs) if did == "stopped")
    outcome.check("it rested for 10 ticks, then stopped", runs[first - 1] == ["rested", 10])
    outcome.check("the reason names the server", any("unavailable" in each for each in outcome.facts["errors"]))
    return outcome


def paused(lab: Lab) -> Outcome:
    """SIGSTOP and SIGCONT: connections stay open and nothing is answered."""
    outcome = Outcome()
    with lab.served() as served, Arm(served.address) as arm:
        broken = time.monotonic()
        served.send(signal.SIGSTOP)
        time.sleep(lab.pause)
        continued = time.monotonic()
        rested = arm.timeline.summary(broken)["rested_since"]
        served.send(signal.SIGCONT)
        arm.wait_for_chunks(20)
        seconds = arm.timeline.resumed_after(continued)
    outcome.facts = arm.timeline.summary(broken)
    outcome.facts["resumed_after_sigcont_s"] = None if seconds is None else round(seconds, 3)
    outcome.check("the arm rested meanwhile", rested > 0)
    outcome.check_controlled()
    return outcome


def clock_jumps(lab: Lab) -> Outcome:
    """The server's clock is set a day ahead and back again (libfaketime): chunks go on as if nothing had been."""
    if not Path(FAKETIME).is_file():
        return Outcome(skipped="libfaketime is not installed (apt-get install faketime)")
    outcome = Outcome()
    offset = lab.folder / "offset"
    offset.write_text("+0\n")
    environment = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        # As a real clock: what is set is the time of day.
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    with lab.served(environment=environment) as served, Arm(served.address) as arm:
        broken = time.monotonic()
        for jump in ("+86400\n", "-86400\n", "+0\n"):
            offset.write_text(jump)
            arm.wait_for_chunks(20)
        offset.write_text("+86400\n")  # the lines of its end have another day's date
    outcome.facts = arm.timeline.summary(broken)
    dates = {line.split('"timestamp": "')[1][:10] for line in served.log().splitlines() if '"timestamp": "' in line}
    outcome.facts["dates_in_the_log"] = sorted(dates)
    outcome.check("the server did see another day", len(dates) > 1)
    outcome.check_undisturbed()
    return outcome


def out_of_memory(lab: Lab) -> Outcome:
    """A reload finds no memory: it is refused, and the version that serves goes on."""
    outcome = Outcome()
    store = lab.store()
    shutil.copytree(store / "one", store / "two")
    another_version(store / "two", "two")
    with lab.served("--store", store) as served, Arm(served.address) as arm:
        files = open_files(served.pid)
        used = _virtual_bytes(served.pid)
        broken = time.monotonic()
        resource.prlimit(served.pid, resource.RLIMIT_AS, (used + 8 * 2**20, resource.RLIM_INFINITY))
        refusal = _refusal(served.admin_address)
        running = served.running
        if running:
            arm.wait_for_chunks(20)
            resource.prlimit(served.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            version = load(served.admin_address, "two", promote=True)
            until(lambda: arm.timeline.ticks[-1].version == version, "the new version's chunks")
            outcome.facts["open_files_more"] = open_files(served.pid) - files
    outcome.facts |= arm.timeline.summary(broken)
    outcome.facts["refusal"] = refusal
    outcome.check("the server lived", running)
    outcome.check("the reload was refused in one line", bool(refusal) and "\n" not in refusal)
    outcome.check_controlled()
    outcome.check("with memory again, the same reload is done", outcome.facts.get("open_files_more") is not None)
    outcome.check("no file was left open", outcome.facts.get("open_files_more", 99) <= 2)
    return outcome


def _refusal(admin_address: str) -> str:
    try:
        load(admin_address, "two", promote=True)
    except ChunkcastError as error:
        return str(error)
    return ""


def _virtual_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
