"""A test whose lab is in a guest: no kernel of this machine need have what it asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed.machines import image, microvm
from tests.conftest import ROOT

pytestmark = pytest.mark.xdist_group("microvm")
pytest_plugins = ["pytester"]


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of this user: those of this run's own cache, else those of the usual place."""
    if image.find() is None:
        # Pytester's HOME is another one, and so is the cache that this suite remembers features in.
        monkeypatch.setenv("XDG_CACHE_HOME", str(Path(f"~{os.environ.get('USER', 'root')}").expanduser() / ".cache"))
    if image.find() is None:
        pytest.skip("there is no image: `testbed image build` makes one")


def test_a_lab_in_a_guest_is_used_and_measured_as_one_here(pytester: pytest.Pytester, cached: None) -> None:
    pytester.makepyfile(
        f"""
        import os
        import pytest
        from pathlib import Path

        @pytest.mark.testbed_feature("netem", machine="microvm")
        def test_it(lab):
            net = lab("{ROOT}/topologies/netem-demo.yaml", machine="microvm")
            assert net.machine == "microvm"
            Path("guest").write_text(net.name)
            assert net.exec("client", ["uname", "-r"]).stdout.strip() != os.uname().release
            done = net.exec("client", ["ping", "-c", "3", "-i", "0.2", "-q", "far"], input=b"")
            assert done.returncode == 0, done
            rtt = float(done.stdout.rpartition(" = ")[2].split("/")[0])
            assert rtt > 170, done.stdout  # 100 ms there and back, less jitter
            run = net.run(sets=["workloads.distance.ping.seconds=2"])
            assert 180 < run.metrics["distance.rtt_p50_ms"] < 260, run
            assert net.metrics == run.metrics
            assert (run.folder / "client/distance.ping.txt").exists()
        """
    )
    done = pytester.runpytest_subprocess("-rs")
    done.assert_outcomes(passed=1)
    assert pytester.path.joinpath("guest").read_text() not in microvm.guests()
