"""What a stream's process must start with, against torch's own launcher."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raytrain.config.inference import Streams
from raytrain.errors import ConfigError
from raytrain.infer.streams import allocators
from raytrain.infer.streams.allocators import environment, find_library, library_folders, system_huge_pages


@pytest.fixture
def libraries(tmp_path) -> Path:
    folder = tmp_path / "lib"
    folder.mkdir()
    for name in ("libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libtcmalloc_minimal.so.4.5.16"):
        (folder / name).touch()
    return folder


@pytest.fixture
def huge_pages(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "enabled"
    path.write_text("always [madvise] never\n")
    monkeypatch.setattr(allocators, "HUGE_PAGES", path)
    return path


def test_threads_alone():
    assert environment(Streams(), 4, {}, ()) == {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}


def test_jemalloc_as_torchs_launcher_has_it(libraries):
    import torch.backends.xeon

    source = (Path(torch.backends.xeon.__file__).parent / "run_cpu.py").read_text()
    found = environment(Streams(allocator="jemalloc"), 1, {}, [libraries])
    assert found["LD_PRELOAD"] == str(libraries / "libjemalloc.so.2")
    assert found["MALLOC_CONF"] == re.search(r'"MALLOC_CONF",\s*"([^"]+)"', source)[1]
    kept = environment(Streams(allocator="jemalloc"), 1, {"MALLOC_CONF": "narenas:1"}, [libraries])
    assert kept["MALLOC_CONF"] == "narenas:1", "the user's"


def test_tcmalloc_is_the_whole_one_where_both_are(libraries):
    found = environment(Streams(allocator="tcmalloc"), 1, {}, [libraries])
    assert found["LD_PRELOAD"] == str(libraries / "libtcmalloc_minimal.so.4.5.16")
    (libraries / "libtcmalloc.so").touch()
    found = environment(Streams(allocator="tcmalloc"), 1, {}, [libraries])
    assert found["LD_PRELOAD"] == str(libraries / "libtcmalloc.so")
    assert "MALLOC_CONF" not in found


def test_what_is_preloaded_stays(libraries):
    found = environment(Streams(allocator="jemalloc"), 1, {"LD_PRELOAD": "/x/liba.so"}, [libraries])
    assert found["LD_PRELOAD"] == f"{libraries / 'libjemalloc.so.2'}:/x/liba.so"
    before = {"LD_PRELOAD": "/elsewhere/libjemalloc.so.2"}
    assert "LD_PRELOAD" not in environment(Streams(allocator="jemalloc"), 1, before, [libraries])


def test_intels_openmp_where_it_is_installed(libraries):
    """As torch's launcher does; without an affinity of its own, which would come before ours."""
    (libraries / "libiomp5.so").touch()
    found = environment(Streams(), 1, {}, [libraries])
    assert found["LD_PRELOAD"] == str(libraries / "libiomp5.so")
    assert found["KMP_BLOCKTIME"] == "1"
    assert "KMP_AFFINITY" not in found


@pytest.mark.parametrize(("name", "package"), [("jemalloc", "libjemalloc2"), ("tcmalloc", "libtcmalloc-minimal4")])
def test_an_allocator_that_is_not_installed(tmp_path, name, package):
    with pytest.raises(ConfigError, match=f"is not installed on this host; Debian and Ubuntu have it as {package}"):
        environment(Streams(allocator=name), 1, {}, [tmp_path])


def test_huge_pages(libraries, huge_pages):
    asked = {name: Streams(allocator=name, huge_pages=True) for name in ("default", "glibc", "jemalloc", "tcmalloc")}
    before = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    found = {name: environment(streams, 1, before, [libraries]) for name, streams in asked.items()}
    assert {each["THP_MEM_ALLOC_ENABLE"] for each in found.values()} == {"1"}
    tunables = "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    assert found["default"]["GLIBC_TUNABLES"] == found["glibc"]["GLIBC_TUNABLES"] == tunables
    assert found["jemalloc"]["MALLOC_CONF"].endswith("metadata_thp:auto,thp:always")
    assert "GLIBC_TUNABLES" not in found["tcmalloc"]


def test_a_system_without_huge_pages(huge_pages, tmp_path):
    assert system_huge_pages(huge_pages) == "madvise"
    assert system_huge_pages(tmp_path / "nothing") == "never"
    huge_pages.write_text("always madvise [never]\n")
    with pytest.raises(ConfigError, match="this host gives none"):
        environment(Streams(huge_pages=True), 1, {}, ())


def test_where_libraries_are_looked_for(tmp_path):
    (tmp_path / "etc/ld.so.conf.d").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf.d/own.conf").write_text("# own\n/opt/own/lib\n")
    folders = library_folders({"VIRTUAL_ENV": "/venv", "HOME": "/home/me"}, tmp_path)
    assert folders[:2] == (Path("/venv/lib"), Path("/home/me/.local/lib"))
    assert folders[-1] == tmp_path / "opt/own/lib"
    assert find_library("nothing", folders) is None
