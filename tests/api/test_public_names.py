"""The public API: every name is documented, every signature resolves, nothing heavy is imported before it is used."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest

import panscope
from panscope import api
from panscope.config import Config

REPOSITORY = Path(__file__).parent.parent.parent
PAGE = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
VERBS = (
    "plan", "train", "resume", "collect", "serve", "evaluate", "compare_decoders", "make_rollouts", "report",
    "import_coders", "export", "publish",
)  # fmt: skip


def test_the_page_documents_every_name_once():
    assert sorted(re.findall(r"^::: panscope\.api\.(\w+)$", PAGE, re.MULTILINE)) == sorted(api.__all__)


@pytest.mark.parametrize("name", [name for name in api.__all__ if name not in ("Listener", "Positions")])
def test_a_public_name_has_a_docstring_and_types_that_resolve(name: str):
    found = getattr(api, name)
    assert inspect.getdoc(found)
    functions = [found] if inspect.isfunction(found) else [
        member for key, member in vars(found).items() if inspect.isfunction(member) and not key.startswith("_")
    ]  # fmt: skip
    for function in functions:
        assert function.__doc__, f"{name}.{function.__name__}"
        hints = typing.get_type_hints(function)
        missing = [key for key in inspect.signature(function).parameters if key not in hints and key != "self"]
        assert not missing or function.__qualname__.startswith("_"), f"{name}.{function.__name__}: {missing}"


def undocumented(kind: type) -> list[str]:
    """The fields of a dataclass or configuration that no string follows in its source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    found = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            name, annotation = statement.target.id, ast.unparse(statement.annotation)
            has_doc = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if not (has_doc or name.startswith("_") or annotation.startswith("ClassVar")):
                found.append(name)
    return found


def has_fields(kind: object) -> bool:
    is_ours = inspect.isclass(kind) and kind.__module__.startswith("panscope")
    return is_ours and (dataclasses.is_dataclass(kind) or issubclass(kind, Config))  # pyright: ignore[reportArgumentType]


def public_types() -> list[type]:
    """The types of the API that have fields, and the types of their fields."""
    left, found = [getattr(api, name) for name in api.__all__ if has_fields(getattr(api, name))], []
    while left:
        kind = left.pop()
        if kind not in found:
            found.append(kind)
            hints = typing.get_type_hints(kind).values()
            left += [part for hint in hints for part in (hint, *typing.get_args(hint)) if has_fields(part)]
    return found


@pytest.mark.parametrize("kind", public_types(), ids=lambda kind: kind.__name__)
def test_every_field_of_a_public_type_is_documented(kind: type):
    assert not undocumented(kind)


def test_every_verb_takes_quiet_and_listeners_where_it_tells_anything():
    silent = {"plan", "report", "export"}
    for name in VERBS:
        parameters = inspect.signature(getattr(api, name)).parameters
        assert ({"quiet", "listeners"} <= parameters.keys()) == (name not in silent), name


def test_the_package_offers_the_names_of_the_api():
    for name in api.__all__:
        assert getattr(panscope, name) is getattr(api, name), name
    assert set(api.__all__) <= set(dir(panscope))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        panscope.nothing  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "code",
    [
        "import panscope; panscope.__version__",
        "import panscope.cli.main",
        "from panscope.cli import main; main.sys.argv = ['panscope', '--help']; main.main()",
        "from panscope.cli import main; main.sys.argv = ['panscope', 'train', '--help']; main.main()",
    ],
)
def test_neither_the_package_nor_help_imports_anything_heavy(code: str):
    """So that help comes at once."""
    heavy = ("torch", "numpy", "transformers", "datasets", "pydantic", "pyarrow", "numba")
    check = f"import sys, atexit; atexit.register(lambda: print([m for m in {heavy} if m in sys.modules])); {code}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_types_ship():
    assert (Path(panscope.__file__).parent / "py.typed").is_file()
