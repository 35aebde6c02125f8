"""Configurations: frozen, strict, explained in one sentence, hashed the same everywhere, written as TOML."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pydantic
import pytest

from panscope.config import Config, expanded, read_toml, write_toml
from panscope.types import UserError

REPOSITORY = Path(__file__).parent.parent


class Inner(Config):
    """A part."""

    depth: int = 1
    slope: float = pydantic.Field(default=0.5, gt=0)


class Outer(Config):
    """A whole."""

    title: str
    part: Inner = Inner()
    weights: dict[str, float] = pydantic.Field(default={})
    note: str | None = None


def test_a_home_that_this_machine_does_not_know() -> None:
    assert expanded("~/a") == Path.home() / "a"
    with pytest.raises(UserError, match=r"^'~nouserxyz/x': this machine knows no home folder '~nouserxyz'; write"):
        expanded(Path("~nouserxyz/x"))


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^suite\.toml: the key 'titel' is unknown; did you mean 'title'\?$"):
        Outer.read({"title": "a", "titel": "b"}, "suite.toml")


def test_an_unknown_key_like_no_other_lists_them_all() -> None:
    with pytest.raises(UserError, match="use one of note, part, title, weights"):
        Outer.read({"title": "a", "xyzzy": 1}, "suite.toml")


def test_an_unknown_key_of_a_part_is_compared_with_the_keys_of_that_part() -> None:
    with pytest.raises(UserError, match=r"did you mean 'depth'\?"):
        Outer.read({"title": "a", "part": {"dept": 2}}, "suite.toml")


def test_a_missing_field_and_a_bad_value_are_named() -> None:
    with pytest.raises(UserError, match="'title' is missing"):
        Outer.read({}, "suite.toml")
    with pytest.raises(UserError, match=r"part\.slope is -1") as caught:
        Outer.read({"title": "a", "part": {"slope": -1}}, "suite.toml")
    assert "\n" not in str(caught.value)


def test_a_configuration_is_frozen_and_replace_checks() -> None:
    config = Inner()
    with pytest.raises(pydantic.ValidationError):
        config.depth = 3
    assert config.replace(depth=3) == Inner(depth=3)
    assert config == Inner()
    with pytest.raises(UserError, match="slope"):
        config.replace(slope=0)
    with pytest.raises(UserError, match="did you mean 'depth'"):
        config.replace(depht=1)


def test_replace_keeps_parts() -> None:
    config = Outer(title="a", part=Inner(depth=7))
    assert config.replace(title="b").part == Inner(depth=7)


def test_the_fingerprint_tells_values_apart_and_forgets_the_order_of_keys() -> None:
    one = Outer(title="a", weights={"x": 1.0, "y": 2.0})
    assert one.fingerprint() == Outer(weights={"y": 2.0, "x": 1.0}, title="a").fingerprint()
    others = [Outer(title="b"), Outer(title="a"), Outer(title="a", note=""), Outer(title="a", part=Inner(depth=2))]
    assert len({config.fingerprint() for config in [one, *others]}) == 5
    assert len(one.fingerprint()) == 16
    int(one.fingerprint(), 16)


SUBPROCESS = """
from panscope.config import Config

class Sample(Config):
    name: str
    weights: dict[str, float]
    pair: tuple[int, float]

fields = {"weights": {"x": 0.1, "y": 2}, "pair": [1, 2.5], "name": "a"}
print(Sample.read(fields, "test").fingerprint())
"""


def test_the_fingerprint_is_the_same_in_every_process() -> None:
    found = set()
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-c", SUBPROCESS]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(run.stdout.strip())
    assert len(found) == 1
    assert len(found.pop()) == 16


def test_toml_goes_round_and_leaves_none_out(tmp_path: Path) -> None:
    config = Outer(title='a "quoted" é', part=Inner(depth=2), weights={"x": 0.1})
    path = tmp_path / "suite.toml"
    path.write_text(write_toml(config.model_dump()), encoding="utf-8")
    tables = read_toml(path)
    assert "note" not in tables
    assert Outer.read(tables, "suite.toml") == config


def test_none_is_left_out_at_any_depth() -> None:
    text = write_toml({"a": None, "b": {"c": None, "d": [{"e": None, "f": 1}]}, "g": (1, 2)})
    assert tomllib.loads(text) == {"b": {"d": [{"f": 1}]}, "g": [1, 2]}


def test_a_file_that_is_missing_or_not_toml_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.toml.*does not exist"):
        read_toml(tmp_path / "none.toml")
    path = tmp_path / "broken.toml"
    path.write_text("a = = 1")
    with pytest.raises(UserError, match=r"broken\.toml.*is not TOML"):
        read_toml(path)
    path.write_bytes(b"a = '\xff'")
    with pytest.raises(UserError, match=r"broken\.toml.*is not TOML"):
        read_toml(path)
