"""The recipe of the guest's image and the cache of images, without a build: real files in a cache of the test's own."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import InputError
from testbed.machines.guest import building, image, recipe
from testbed.machines.guest.recipe import Lock, Package
from tests.conftest import testbed
from tests.strategies import examples

ROOT = Path(__file__).parent.parent
NAMES = st.from_regex(r"[a-z0-9][a-z0-9+.\-]{1,20}", fullmatch=True)
VERSIONS = st.from_regex(r"([0-9]:)?[0-9][A-Za-z0-9.+~\-]{0,20}", fullmatch=True)
PACKAGES = st.lists(
    st.builds(Package, NAMES, VERSIONS, st.sampled_from(["amd64", "all"])), unique_by=lambda p: p.name
).map(lambda found: tuple(sorted(found)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the recipe that may be edited."""
    return shutil.copytree(recipe.FOLDER, tmp_path / "recipe")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, with the image that `find` looks for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put(image.cache() / recipe.digest())
    return image.cache()


def put(home: Path) -> None:
    """Make the files of an image, small ones, as a build leaves them."""
    home.mkdir(parents=True)
    files = {}
    for name in image.FILES:
        (home / name).write_text(name)
        files[name] = {"bytes": len(name), "sha256": hashlib.sha256(name.encode()).hexdigest()}
    about = {"files": files, "built": home.name, "kernel": "7", "packages": {}, "lock": {"packages": [], "build": []}}
    (home / "manifest.json").write_text(json.dumps(about))


@pytest.mark.parametrize("file", sorted(f.name for f in recipe.FOLDER.iterdir() if f.is_file()))
def test_every_file_of_the_recipe_names_another_image_when_it_changes(folder: Path, file: str) -> None:
    before = recipe.digest(folder)
    (folder / file).write_bytes((folder / file).read_bytes() + b"\n")
    assert recipe.digest(folder) != before


def test_a_file_that_is_added_or_renamed_names_another_image(folder: Path) -> None:
    before = recipe.digest(folder)
    (folder / "more").touch()
    added = recipe.digest(folder)
    (folder / "more").rename(folder / "other")
    assert len({before, added, recipe.digest(folder)}) == 3


@examples(30)
@given(PACKAGES, PACKAGES)
def test_a_lock_reads_back_as_it_was_written(packages: tuple[Package, ...], build: tuple[Package, ...]) -> None:
    assert recipe.parse_lock(str(Lock(packages, build))) == Lock(packages, build)


def test_the_lock_of_the_recipe_has_what_labs_need_and_no_compiler_in_the_image() -> None:
    lock = recipe.lock()
    inside, beside = {p.name for p in lock.packages}, {p.name for p in lock.build}
    listed = [row.split() for row in (recipe.FOLDER / "packages.txt").read_text().splitlines() if row[0] != "#"]
    assert {name for name, where, *_ in listed if where in ("lab", "guest")} <= inside
    assert {name for name, where, *_ in listed if where in ("build", "image")} <= inside | beside
    assert not {n for n in inside if re.match(r"gcc-\d+|binutils|make$|linux-headers", n)} - {"gcc-16-base"}
    assert str(lock) == (recipe.FOLDER / recipe.LOCK).read_text()  # sorted, and nothing by hand


def test_what_differs_from_a_lock_is_named_package_by_package() -> None:
    one, two, three = Package("iw", "6.17", "amd64"), Package("iw", "6.18", "amd64"), Package("jq", "1", "amd64")
    assert recipe.difference([one], [one]) == ()
    assert recipe.difference([one], [two]) == ("iw: 6.17 is locked, 6.18 came",)
    assert recipe.difference([one], [three]) == ("iw: 6.17 is locked, none came", "jq: it is not in the lock, 1 came")


def test_the_guest_has_the_python_packages_that_were_tested() -> None:
    def normal(text: str) -> str:
        return re.sub(r"[-_.]+", "-", text).lower()

    tested = {normal(row) for row in (ROOT / "constraints.txt").read_text().splitlines()}
    rows = [r for r in (recipe.FOLDER / "python.txt").read_text().splitlines() if not r.startswith("#")]
    assert {normal(row.split()[0]) for row in rows} <= tested
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {normal(row.partition("==")[0]) for row in rows}
    assert {normal(re.split(r"[<>=~]", w)[0]) for w in wanted} <= names
    assert all(re.fullmatch(r"\S+==\S+( --hash=sha256:[0-9a-f]{64})+", row) for row in rows)


def test_no_host_is_named_in_the_recipe_or_its_code() -> None:
    files = [*recipe.FOLDER.iterdir(), *(ROOT / "testbed" / "machines").glob("*.py")]
    found = [f.name for f in files if f.is_file() and re.search(r"https?://|\w\.(org|com|net)\b", f.read_text())]
    assert not found


def test_the_cached_image_is_found(cache: Path) -> None:
    found = image.find()
    assert found is not None
    assert (found.kernel.read_text(), found.initrd.read_text(), found.root.read_text()) == image.FILES
    assert image.images() == [found]


@pytest.mark.parametrize("name", [*image.FILES, "manifest.json"])
def test_an_image_that_lacks_a_file_or_a_part_of_it_is_not_found(cache: Path, name: str) -> None:
    file = cache / recipe.digest() / name
    file.write_bytes(file.read_bytes()[:-1])
    assert image.find() is None
    file.unlink()
    assert image.find() is None
    assert image.images() == []


def test_what_a_build_leaves_that_was_killed_is_no_image(cache: Path) -> None:
    shutil.rmtree(cache / recipe.digest())
    put(cache / ".building-abc" / "out")  # all files written, and killed before it got its name
    assert image.find() is None
    assert image.images() == []


def test_the_next_build_removes_what_a_killed_one_left(cache: Path) -> None:
    put(cache / ".building-abc" / "out")
    put(cache / ".removed-abc" / "image")
    assert image.build(lambda *_: None).digest == recipe.digest()  # it is there: nothing is built
    assert sorted(f.name for f in cache.iterdir()) == [".lock", recipe.digest()]


def test_an_image_is_removed_by_how_its_digest_begins(cache: Path) -> None:
    put(cache / "aa11")
    put(cache / "aa22")
    (cache / "aa22" / "saved-1.state").touch()
    with pytest.raises(InputError, match="2 images of digest 'aa'"):
        image.remove("aa")
    with pytest.raises(InputError, match="no image of digest 'bb'"):
        image.remove("bb")
    assert image.remove("aa2").digest == "aa22"
    assert {f.name for f in cache.iterdir()} == {"aa11", recipe.digest()}


def test_a_machine_that_lacks_tools_is_told_which_and_how_to_get_them(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = testbed("image", "build", env=environment)
    assert done.returncode == 4
    assert re.search(r"apt-get install .*mmdebstrap util-linux", done.stderr)
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and f.name != ".lock"]


def test_images_are_listed_and_removed_from_the_command_line(cache: Path) -> None:
    put(cache / "aa11")
    assert {row["folder"] for row in json.loads(testbed("image", "ls", "--json").stdout)} == {
        str(cache / "aa11"),
        str(cache / recipe.digest()),
    }
    assert [row[0] for row in testbed("image", "ls").stdout.splitlines() if recipe.digest() in row] == ["*"]
    assert testbed("image", "rm", "aa11").returncode == 0
    assert [i.digest for i in image.images()] == [recipe.digest()]
    assert testbed("image", "rm", "aa11").returncode == 2
    assert testbed("image", "rm").returncode == 2
    assert testbed("image", "rm", "--all").returncode == 0
    assert image.images() == []


def test_a_builds_progress_only_goes_forward_and_names_each_step() -> None:
    packages = [f"{verb} package{n}" for verb in ("Get:", "Unpacking ", "Setting up ") for n in range(300)]
    steps = [f"testbed: {text}" for text in building.STEPS]
    said = [line for step in steps for line in (step, *packages, "gcc -c a.c")]
    told: list[tuple[str, float]] = []
    assert list(building.watched(said, lambda text, fraction: told.append((text, fraction)))) == said
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1
    assert list(dict.fromkeys(text for text, _ in told)) == list(building.STEPS)


def test_the_recipe_says_the_steps_that_progress_is_told_by() -> None:
    said = re.findall(
        r'say "([^"]+)"', "".join((recipe.FOLDER / f"{n}.sh").read_text() for n in ("image", "provision"))
    )
    assert not [step for step in building.STEPS if not any(text.startswith(step) for text in said)]


def test_the_command_line_starts_without_what_images_need() -> None:
    tree = ast.parse((ROOT / "testbed/cli/app.py").read_text())
    top = [ast.unparse(n) for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert not [row for row in top if "machines" in row]
