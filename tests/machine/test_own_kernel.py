"""A guest with a kernel of one's own: what a kernel developer does with `make bzImage modules_install`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest

from testbed.machines.guest import image
from tests.conftest import testbed

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("own-kernel")]


def test_a_lab_runs_on_the_kernel_that_is_given_with_its_modules(guests: None, tmp_path: Path) -> None:
    base = image.find()
    assert base is not None
    words = ("unsquashfs", "-quiet", "-no-progress", "-dest", str(tmp_path / "root"), str(base.root), "usr/lib/modules")
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    given = ("--kernel", str(base.kernel), "--modules", str(tmp_path / "root/usr/lib/modules"))
    file = tmp_path / "lab.yaml"
    # netem and veth are modules: they come from the folder that was given.
    file.write_text("""name: lab
nodes: {a: {}, b: {}}
links: [{ends: ["a:eth0", "b:eth0"], delay: 1ms}]
workloads: {p: {ping: {from: a, to: b, seconds: 2}}}
checks: [{metric: p.loss_pct, max: 0}]
""")
    before = {i.digest for i in image.images()}
    try:
        done = testbed("run", str(file), "--name", f"t{uuid4().hex[:8]}", *given, cwd=tmp_path, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        manifest = json.loads((tmp_path / "results/lab/latest/manifest.json").read_text())
        assert manifest["kernel"]["release"] == base.manifest["kernel"], "the guest's own word"
        assert manifest["kernel_file"]["path"] == str(base.kernel)
        (made,) = [i for i in image.images() if i.digest not in before]
        assert (made.manifest["base"], made.digest) == (base.digest, manifest["image"]["digest"])
    finally:
        for made in image.images():
            if made.digest not in before:
                image.remove(made.digest)
