"""A few damaged copies of all files that d2im reads; benchmarks/fuzz.py makes more."""

from importlib import import_module
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
EACH = 6  # cases of a kind


@pytest.fixture(scope="module")
def fuzz():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        module = import_module("fuzz")
        yield module
        module.close_idle()


@pytest.fixture(scope="module")
def sources(fuzz, tmp_path_factory):
    return fuzz.make_all(tmp_path_factory.mktemp("sources"))


def test_what_is_not_damaged_is_read(fuzz, sources, tmp_path):
    for kind, source in sources.items():
        verdict, said, _, _ = fuzz.tried(kind, None, 0, source, tmp_path)
        assert verdict == "read", (kind, said)


def test_damage_gives_a_result_or_a_line_that_names_the_file(fuzz, sources, tmp_path):
    for kind, source in sources.items():
        for number in range(EACH):
            verdict, *said = fuzz.tried(kind, number, 7, source, tmp_path)
            assert verdict not in fuzz.WRONG, (kind, number, verdict, said)


def test_damage_is_a_function_of_seed_kind_and_number(fuzz, sources, tmp_path):
    given = "run", 3, 7, sources["run"], tmp_path
    assert fuzz.tried(*given)[:3] == fuzz.tried(*given)[:3]


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (ValueError("a.csv is damaged"), "refused"),
        (FileNotFoundError("a.csv is missing"), "refused"),
        (ValueError("it is damaged"), "unnamed"),
        (ValueError("a.csv\nis damaged"), "unnamed"),
        (KeyError("a.csv"), "escape"),
        (MemoryError("a.csv"), "memory"),
    ],
    ids=repr,
)
def test_what_is_wrong_is_told_from_what_is_right(fuzz, tmp_path, error, verdict):
    def read(folder):
        raise error

    assert fuzz.judged(read, tmp_path, {"a.csv"})[0] == verdict
