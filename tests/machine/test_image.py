"""The guest's image as it was built: what is in it, that it boots, and that a build is all or nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from testbed.errors import LabError, Unsupported
from testbed.machines.guest import image, recipe
from testbed.machines.guest.image import Image

pytestmark = [pytest.mark.machine, pytest.mark.xdist_group("image")]
REQUIRED = "image" in os.environ.get("TESTBED_REQUIRE", "").split(",")


@pytest.fixture(scope="session")
def built() -> Image:
    """The image of the present recipe: the cached one, or one that is made now."""
    try:
        return image.build(lambda *_: None)
    except Unsupported as e:
        if REQUIRED:
            raise
        pytest.skip(str(e))


@pytest.fixture(scope="session")
def root(built: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the tests look at of the image's root file system."""
    if shutil.which("unsquashfs") is None:
        pytest.skip("apt-get install squashfs-tools")
    folder = tmp_path_factory.mktemp("image") / "root"
    wanted = ("usr", "lib", "lib64", "bin", "sbin", "var/lib/dpkg/status")
    subprocess.run(("unsquashfs", "-q", "-n", "-no-xattrs", "-d", folder, built.root, *wanted), check=True)
    yield folder
    shutil.rmtree(folder)


def run_inside(root: Path, program: str, *argv: str) -> str:
    """Run a program of the image with the image's own libraries, on this kernel; return what it says."""
    libraries = f"{root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib/x86_64-linux-gnu/wireshark"
    loader = (f"{root}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries)
    done = subprocess.run((*loader, f"{root}{program}", *argv), capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


def test_the_manifest_lists_the_packages_that_are_in_the_image(built: Image, root: Path) -> None:
    stanzas = (root / "var/lib/dpkg/status").read_text().split("\n\n")
    fields = [dict(re.findall(r"^(\S+): (.*)$", stanza, re.M)) for stanza in stanzas if stanza.strip()]
    found = {f["Package"]: f["Version"] for f in fields if f["Status"] == "install ok installed"}
    assert built.manifest["packages"] == found
    assert {p.name: p.version for p in built.lock().packages} == found


def test_the_image_has_the_names_of_the_lock(built: Image) -> None:
    """Versions may have moved since the lock was written, `--locked` refuses then; names are the recipe's."""
    kernel = re.compile(r"^linux-(image|modules|binary|base|headers)-\d.*")
    names = {kernel.sub(r"linux-\1", p.name) for p in recipe.lock().packages}
    assert names == {kernel.sub(r"linux-\1", name) for name in built.manifest["packages"]}


def test_the_sums_of_the_manifest_are_those_of_the_files(built: Image) -> None:
    rows = "".join(f"{built.manifest['files'][name]['sha256']}  {built.folder / name}\n" for name in image.FILES)
    subprocess.run(("sha256sum", "--check", "--quiet"), input=rows, text=True, check=True)
    assert built.root.stat().st_size < 350 << 20


@pytest.mark.parametrize(("program", "knows"), [("/usr/local/sbin/hostapd", True), ("/usr/sbin/hostapd", False)])
def test_hostapd_of_the_image_knows_multi_link_operation(root: Path, tmp_path: Path, program: str, knows: bool) -> None:
    """Debian's own does not: when that has changed, the build of the recipe may go."""
    config = tmp_path / "hostapd.conf"
    config.write_text(
        "interface=none0\ndriver=nl80211\nhw_mode=a\nchannel=36\nieee80211ax=1\nieee80211be=1\nmld_ap=1\n"
    )
    said = run_inside(root, program, str(config))
    assert "none0" in said or not knows  # the configuration was read, and the interface looked for
    assert ("unknown configuration item 'mld_ap'" in said) != knows, said


def test_modules_are_of_the_images_kernel_and_can_be_loaded_as_they_are(built: Image, root: Path) -> None:
    modules = root / "usr/lib/modules" / built.manifest["kernel"]
    names = {f.name.partition(".")[0]: f for f in modules.rglob("*.ko")}
    wanted = (
        "amt veth bridge sch_netem mac80211_hwsim 9p 9pnet_virtio virtio_net overlay nf_tables mptcp_diag tun vxlan"
    )
    assert set(wanted.split()) <= set(names)
    magic = {name: re.search(rb"vermagic=([^\0]+)", names[name].read_bytes()) for name in ("amt", "veth")}
    assert magic["amt"]
    assert magic["veth"]
    assert magic["amt"][1] == magic["veth"][1]
    assert magic["amt"][1].decode().startswith(built.manifest["kernel"] + " ")
    assert "updates/amt.ko:" in (modules / "modules.dep").read_text()
    assert not list(modules.rglob("*.ko.*"))


def test_every_python_module_is_compiled_ahead(root: Path) -> None:
    folders = (root / "usr/local/lib/python3.14", root / "usr/lib/python3.14")
    sources = [f for folder in folders for f in folder.rglob("*.py") if "bad" not in f.name]
    assert len(sources) > 1000
    lacking = [f for f in sources if not (f.parent / "__pycache__" / f"{f.stem}.cpython-314.pyc").exists()]
    assert not lacking
    # PEP 552: flags 0b01 is a hash-based file whose source is not looked at.
    compiled = next((folders[0] / "dist-packages/pydantic/__pycache__").glob("main.*.pyc")).read_bytes()
    assert compiled[4:8] == (1).to_bytes(4, "little")


def test_no_compiler_and_no_secret_is_in_the_image(root: Path, built: Image) -> None:
    assert not [f for f in (root / "usr/bin").iterdir() if re.fullmatch(r"(.*-)?(gcc|cc|ld|as|make)(-\d+)?", f.name)]
    asked = subprocess.run(("unsquashfs", "-l", built.root), capture_output=True, text=True, check=True)
    assert "usr/sbin/dropbear" in asked.stdout
    assert not re.findall(r".*host_key.*", asked.stdout)


def test_the_image_boots_to_a_shell_and_loads_amt(built: Image) -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("apt-get install qemu-system-x86")
    argv = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1G"),
        *("-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(built.kernel)),
        *("-initrd", str(built.initrd), "-append", "console=ttyS0 quiet panic=-1 testbed_init=/bin/sh"),
        *("-drive", f"file={built.root},format=raw,if=virtio,readonly=on"),
    ]
    typed = (
        32
        * "\n"  # the driver clears the port's FIFO when the console is opened
        + "export PATH=/usr/local/sbin:/usr/sbin:/usr/bin; modprobe -a amt mac80211_hwsim sch_netem; lsmod; "
        "touch /written && echo writable-$((6*7)); hostapd -v; "
        "python3 -c 'import pydantic, typer, rich, yaml, pyroute2; print(\"imports\", 6*7)'; "
        "echo o >/proc/sysrq-trigger\n"
    )
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as guest:
        try:
            assert guest.stdin is not None
            assert guest.stdout is not None
            guest.stdin.write(typed)  # the serial port keeps it until the shell reads
            guest.stdin.flush()
            said = guest.communicate(timeout=180)[0]
        finally:
            guest.kill()
    modules = {row.split()[0] for row in said.splitlines() if row.strip()}
    assert {"amt", "udp_tunnel", "mac80211_hwsim", "sch_netem"} <= modules, said
    assert "writable-42" in said
    assert "imports 42" in said


def of_build(cache: Path) -> list[str]:
    """Processes and mounts that have to do with a cache."""
    found = [row for row in Path("/proc/self/mountinfo").read_text().splitlines() if str(cache) in row]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                places = [os.readlink(entry / "root"), os.readlink(entry / "cwd"), words]
            except OSError:
                continue
            found += [f"{entry.name} {words}"] if any(str(cache) in place for place in places) else []
    return found


def until(fact: str, seconds: float, holds: object) -> None:
    deadline = time.monotonic() + seconds
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s: {fact}"
        time.sleep(0.05)


def test_a_build_that_is_killed_or_interrupted_leaves_nothing_that_runs_and_no_image(
    tmp_path: Path, built: Image
) -> None:
    home = tmp_path / "testbed"
    shutil.copytree(image.cache().parent / "sources", home / "sources")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    argv = (sys.executable, "-m", "testbed", "image", "build")
    log = home / "images" / "build.log"

    def begin(said: str) -> subprocess.Popen[str]:
        log.unlink(missing_ok=True)
        made = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
        until(f"the log has {said}", 120, lambda: log.exists() and f"\n{said}" in log.read_text())
        return made

    killed = begin("Unpacking ")
    assert of_build(home)
    killed.kill()
    killed.communicate()
    until("no process of the killed build is left", 10, lambda: not of_build(home))
    (left,) = (home / "images").glob(".building-*")
    assert list(left.glob("root/var/lib/dpkg"))  # it was in the midst

    interrupted = begin("Get:")
    assert not left.exists()
    assert of_build(home)
    interrupted.send_signal(signal.SIGINT)
    assert "interrupted" in interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130
    assert not of_build(home)
    assert sorted(f.name for f in (home / "images").iterdir()) == [".lock", "build.log"]


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Image) -> Path:
    """A recipe that may be edited, and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = shutil.copytree(recipe.FOLDER, tmp_path / "recipe")
    monkeypatch.setattr(recipe, "FOLDER", folder)
    return folder


def test_a_locked_build_names_every_version_that_is_no_longer_to_be_had(edited: Path) -> None:
    lock = edited / recipe.LOCK
    lock.write_text(re.sub(r"^(iw|nftables) \S+", r"\1 0.0.1-1", lock.read_text(), flags=re.M))
    with pytest.raises(Unsupported) as refused:
        image.build(lambda *_: None, locked=True)
    assert {"iw 0.0.1-1", "nftables 0.0.1-1"} <= set(str(refused.value).splitlines())
    assert image.images() == []


def test_a_source_that_no_suite_has_is_named_with_what_each_said(edited: Path) -> None:
    text = (edited / "sources.txt").read_text()
    (edited / "sources.txt").write_text(re.sub(r"[0-9a-f]{64}", "0" * 64, text))
    with pytest.raises(
        LabError, match=r"cannot download source wpa_2.11.orig.tar.xz; forky: E: .*; sid: E: .*; resolute: "
    ) as e:
        image.build(lambda *_: None)
    assert "sources.txt" in str(e.value)
    assert image.images() == []


def test_a_user_without_subordinate_ids_is_told_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    # This interpreter may be in a folder that is closed to others; the system's of the same version never is.
    python = f"/usr/bin/python{sysconfig.get_python_version()}"
    if not Path(python).exists():
        pytest.skip(f"there is no {python}, which another user could run")
    asked = "import pathlib; from testbed.machines.guest import building; building.require(pathlib.Path())"
    become = ("setpriv", "--reuid=60123", "--regid=60123", "--clear-groups", "env", "-i", "PATH=/usr/bin:/bin")
    with TemporaryDirectory() as folder:  # pytest's own is its user's alone
        for package in ("testbed", "msgspec"):
            found = importlib.util.find_spec(package)
            assert found is not None
            assert found.origin is not None
            shutil.copytree(Path(found.origin).parent, Path(folder, package))
        os.chmod(folder, 0o755)
        argv = (*become, python, "-c", asked)
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    assert "Unsupported: image build: this machine lacks" in done.stderr
    assert "namespaces for a user: " in done.stderr
    assert "usermod --add-subuids" in done.stderr
