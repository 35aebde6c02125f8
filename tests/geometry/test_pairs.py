"""Selection of coders to compare: those of one place, most informative pairs first, and their companions."""

from pathlib import Path

from panscope.geometry.pairs import (
    CoderInfo,
    companions,
    matchings,
    pairs_among,
    pairs_between,
    places,
    seed_coder,
    splittings,
)


def known(name: str, place: str = "R", architecture: str = "topk", latents: int = 64, sparsity: float = 8) -> CoderInfo:
    folder = Path("coders") / name.split("@")[0]
    return CoderInfo(name, folder, place, architecture, sparsity, latents, width=16, xxh3="")


A, B = known("a"), known("b", architecture="relu", sparsity=0.1)
C, D = known("c", latents=256), known("d", latents=128)
E = known("e", sparsity=4)
ELSEWHERE = known("z", place="M", latents=128)


def names(pairs: list[tuple[CoderInfo, CoderInfo]]) -> list[str]:
    return [f"{a.name}{b.name}" for a, b in pairs]


def test_places_are_apart_and_narrow_comes_first():
    assert {place: [c.name for c in group] for place, group in places([C, ELSEWHERE, B, A, D]).items()} == {
        "R": ["a", "b", "d", "c"],
        "M": ["z"],
    }
    assert names(pairs_among([C, ELSEWHERE, A, D])) == ["ad", "ac", "dc"]


def test_matchings_of_equal_widths_come_first_and_those_of_other_architectures_before_all():
    expected = "ab be ae bd ad dc ed bc ac ec"
    assert names(matchings(pairs_among([A, B, C, D, E]))) == expected.split()


def test_splittings_are_from_narrow_to_wide_and_those_that_differ_in_nothing_else_come_first():
    assert names(splittings(pairs_among([A, B, C, D, E]))) == ["ad", "dc", "ac", "ed", "ec", "bd", "bc"]
    assert names(splittings([(C, A), (D, C)])) == ["dc", "ac"]


def test_between_runs_coders_of_one_name_come_first():
    others = [known("b@two", architecture="relu", sparsity=0.1), known("a@two"), known("z@two", place="M")]
    found = pairs_between([A, B, C], others)
    assert names(matchings(found)) == ["aa@two", "bb@two", "ab@two", "ba@two", "cb@two", "ca@two"]
    assert names(splittings(found)) == ["a@twoc", "b@twoc"]


def test_companions_of_a_neighbourhood():
    """Another coder of the seed's width, of another architecture if there is one; and the widest that is wider."""
    everyone = [A, B, C, D, E, ELSEWHERE]
    assert companions(A, everyone) == (B, C)
    assert companions(A, [A, E, C]) == (E, C)
    assert companions(A, [A, C, D]) == (D, C)
    assert companions(A, [A, C]) == (None, C)
    assert companions(C, everyone) == (D, None)
    assert companions(ELSEWHERE, everyone) == (None, None)


def test_the_coder_a_neighbourhood_begins_with():
    assert seed_coder([C, D, B, A], [A, B, C, D]) == A
    assert seed_coder([C, D, A], [A, C, D]) == A
    wide_twin = known("f", latents=256)
    assert seed_coder([A, C, wide_twin], [A, C, wide_twin]) == C
