"""The network, the disk, bundles and certificates break around a server that is well itself."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.chaos.admin import load
from benchmarks.chaos.arm import Arm
from benchmarks.chaos.lab import Lab, Outcome, another_version, metrics, until
from benchmarks.chaos.links import SERVER_ADDRESS, Link, Proxy, namespace
from chunkcast.client import ChunkcastError, Credentials


def network_cut(lab: Lab) -> Outcome:
    """Every packet is lost for a while, without a word."""
    outcome = Outcome()

    def break_it(arm: Arm, link: Link) -> None:
        broken = time.monotonic()
        link.cut()
        time.sleep(lab.pause)
        restored = time.monotonic()
        link.restore()
        arm.wait_for_chunks(20)
        seconds = arm.timeline.resumed_after(restored)
        outcome.facts |= arm.timeline.summary(broken)
        outcome.facts["resumed_after_restored_s"] = None if seconds is None else round(seconds, 3)

    _over_a_link(lab, outcome, break_it, slow=False)
    outcome.check("the arm rested meanwhile", outcome.facts["rested_since"] > 0)
    outcome.check_controlled()
    return outcome


def network_slow(lab: Lab) -> Outcome:
    """Every packet takes 30 ms more each way, give or take 5: later chunks, and no other harm."""
    outcome = Outcome()

    def break_it(arm: Arm, link: Link) -> None:
        broken = time.monotonic()
        link.slow(30.0, 5.0)
        arm.wait_for_chunks(40)
        outcome.facts |= arm.timeline.summary(broken)
        outcome.facts["latency_s"] = round(arm.latency, 3)
        link.restore()
        arm.wait_for_chunks(20)

    _over_a_link(lab, outcome, break_it, slow=True)
    outcome.check("chunks took longer", outcome.facts["latency_s"] >= 0.055)
    outcome.check_undisturbed()
    return outcome


def _over_a_link(lab: Lab, outcome: Outcome, break_it: Callable[[Arm, Link], None], *, slow: bool) -> None:
    with namespace(slow=slow) as own:
        if own is not None:
            outcome.facts["network"] = "a namespace of its own" + (", tc netem" if slow else ", its link down")
            served = lab.served("--insecure", host=SERVER_ADDRESS, before=own.before)
            with served, Arm(served.address) as arm:
                break_it(arm, own)
            return
    outcome.facts["network"] = "a proxy on loopback"
    with lab.served() as served:
        proxy = Proxy(served.address)
        with Arm(proxy.address) as arm:
            break_it(arm, proxy)
        proxy.close()


def disk_full(lab: Lab) -> Outcome:
    """The store's disk is full when a bundle is copied into it: what arrived is refused, the old one serves on."""
    disk = lab.folder / "disk"
    disk.mkdir()
    size = int(1.5 * sum(file.stat().st_size for file in lab.bundle.iterdir()))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "chunkcast", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        return Outcome(skipped="no file system may be mounted here")
    outcome = Outcome()
    try:
        lab.store(disk)
        with lab.served("--store", disk, "--watch") as served, Arm(served.address) as arm:
            broken = time.monotonic()
            full = _copy(lab.bundle, disk / "two")
            until(lambda: 'outcome="refused"} 1' in metrics(served).replace("1.0", "1"), "the refusal")
            arm.wait_for_chunks(20)
            shutil.rmtree(disk / "two")
            arm.wait_for_chunks(20)
        outcome.facts = arm.timeline.summary(broken) | {"copying_said": full}
        refusals = [line for line in served.log().splitlines() if "bundle refused" in line]
        outcome.check("the disk was full", "No space left" in full)
        outcome.check("the log says why", any("two" in line for line in refusals))
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=True)
    outcome.check_undisturbed()
    return outcome


def _copy(source: Path, target: Path) -> str:
    """Copy a folder file by file, the specification first; returns what went wrong."""
    target.mkdir()
    try:
        for file in (source / "policy.json", *source.glob("*.onnx")):
            shutil.copy(file, target)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def corrupt_bundle(lab: Lab) -> Outcome:
    """A bundle with a bit flipped is swapped in under a watching server: refused; the whole one then is promoted."""
    outcome = Outcome()
    store = lab.store()
    with lab.served("--store", store, "--watch") as served, Arm(served.address) as arm:
        broken = time.monotonic()
        aside = store / ".two"
        shutil.copytree(store / "one", aside)
        another_version(aside, "two")
        graph = bytearray((aside / "policy.onnx").read_bytes())
        graph[len(graph) // 2] ^= 1
        (aside / "policy.onnx").write_bytes(graph)
        aside.rename(store / "two")
        until(lambda: "SHA-256" in served.log(), "the refusal")
        arm.wait_for_chunks(20)
        answered = {tick.version for tick in arm.timeline.ticks}
        try:
            load(served.admin_address, "two", promote=True)
            refusal = ""
        except ChunkcastError as error:
            refusal = str(error)
        shutil.copy(store / "one" / "policy.onnx", store / "two" / "policy.onnx")
        until(lambda: arm.timeline.ticks[-1].version == "two", "the whole bundle's chunks")
    outcome.facts = arm.timeline.summary(broken) | {"refusal": refusal}
    outcome.check("the corrupt one never answered", bool(answered) and "two" not in answered)
    outcome.check("an operator is told why", "SHA-256" in refusal)
    outcome.check_undisturbed()
    return outcome


def certificate_expires(lab: Lab) -> Outcome:
    """A certificate expires while an arm plays, the server restarts with it, and it is renewed later on."""
    import trustme

    outcome = Outcome()
    authority = trustme.CA()
    ca, certificate, key = (lab.folder / name for name in ("ca.pem", "server.crt", "server.key"))
    authority.cert_pem.write_to_path(str(ca))

    def issue(valid: timedelta) -> None:
        made = authority.issue_cert("127.0.0.1", not_after=datetime.now(UTC) + valid)
        for content, file in ((made.cert_chain_pems[0], certificate), (made.private_key_pem, key)):
            content.write_to_path(str(file) + ".new")
            Path(str(file) + ".new").replace(file)

    lifetime = timedelta(seconds=12)
    issue(lifetime)
    expired_at = time.monotonic() + lifetime.total_seconds()
    with (
        lab.served("--tls-cert", certificate, "--tls-key", key) as served,
        Arm(served.address, credentials=Credentials(ca=ca)) as arm,
    ):
        until(lambda: time.monotonic() > expired_at + 1.0, "the certificate's end")
        arm.wait_for_chunks(20)  # a connection that is open goes on
        before = arm.timeline.summary()["ticks"]["rested"]
        broken = time.monotonic()
        served.kill()
        served.start()
        time.sleep(lab.pause)
        without = arm.timeline.resumed_after(served.ready_at)
        renewed = time.monotonic()
        issue(timedelta(days=1))
        arm.wait_for_chunks(20)
        seconds = arm.timeline.resumed_after(renewed)
    outcome.facts = arm.timeline.summary(broken)
    outcome.facts["resumed_after_renewal_s"] = None if seconds is None else round(seconds, 3)
    outcome.check("while the connection lasted, the arm did not notice", before == 0)
    outcome.check("an expired certificate was not accepted", without is None)
    outcome.check("with the renewed one the arm played on, without a restart", seconds is not None)
    outcome.check_controlled()
    return outcome
