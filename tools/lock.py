"""Write the lock files: every release that an installation from this repository uses, with hashes (`make update`).

uv resolves for every supported Python and platform at once. torch stays outside of the hashed files, since its build
depends on the machine, and with it the CUDA libraries that torch pins itself.

    python tools/lock.py TORCH_VERSION
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "requirements"
OF_TORCH = re.compile(r"torch==|nvidia-|cuda-")
EXTRAS = ("pyproject.toml", "--all-extras")


def main(torch: str) -> None:
    locked = compiled(torch, *EXTRAS, "--group", "dev")
    write("locked.txt", locked)
    write("oldest.txt", compiled(lowest_torch(), *EXTRAS, "--group", "test", "--resolution", "lowest-direct"))
    write("peers.txt", compiled(torch, "requirements/peers.in"))
    tested = {name: found for name, found in versions(locked).items() if name in direct_dependencies()}
    text = json.dumps(dict(sorted((tested | {"torch": [torch]}).items())), indent=2)
    (REPOSITORY / "panscope" / "builtin" / "tested_versions.json").write_text(text + "\n", encoding="utf-8")


def compiled(torch: str, *what: str) -> str:
    """The requirements file that uv makes, without torch and its CUDA libraries."""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [
        uv,
        "pip",
        "compile",
        *what,
        "--universal",
        "--generate-hashes",
        "--no-header",
        "--no-annotate",
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--constraint", "-", "--python-version", "3.11.0", "--quiet"],
        input=f"torch=={torch}\n",
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    blocks = re.split(r"\n(?=\S)", done.stdout.strip())
    return "\n".join(block for block in blocks if not OF_TORCH.match(block)) + "\n"


def write(name: str, text: str) -> None:
    (FOLDER / name).write_text(f"# Made by `make update`; do not edit.\n{text}", encoding="utf-8")


def versions(locked: str) -> dict[str, list[str]]:
    """The locked releases of each distribution, oldest first: some differ by Python version."""
    found: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", locked, re.MULTILINE):
        found.setdefault(name, []).append(version)
    return found


def direct_dependencies() -> set[str]:
    """The names that pyproject.toml declares for users, extras included."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    return {re.split(r"[\[<>=~! ]", one)[0].lower() for one in declared}


def lowest_torch() -> str:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [one.removeprefix("torch>=") for one in project["dependencies"] if one.startswith("torch>=")]
    return bound


if __name__ == "__main__":
    main(sys.argv[1])
