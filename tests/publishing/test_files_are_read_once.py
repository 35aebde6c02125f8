"""Publishing reads every file of a run once, however many of its parts need it."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from panscope.events import Reporter
from panscope.publishing.publish import PublishOptions, publish_run
from panscope.runs.run import Run
from tests.support.made_run import write_made_run

opened: Counter[str] | None = None


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if opened is not None and event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".json"):
        opened[arguments[0]] += 1


sys.addaudithook(_count)  # which cannot be taken away again, so it counts only while `opened` is there


def test_every_json_file_of_a_run_is_read_once(tmp_path: Path) -> None:
    global opened
    run = Run.open(write_made_run(tmp_path / "run", tmp_path / "alice"))
    opened = Counter()
    try:
        publish_run(run, "me/coders", PublishOptions(dry_run=tmp_path / "out"), Reporter())
        counted = {name: count for name, count in opened.items() if name.startswith(str(run.path / "coders"))}
    finally:
        opened = None
    assert len(counted) >= 2 * len(run.coder_names()) - 1
    assert set(counted.values()) == {1}, {name: count for name, count in counted.items() if count > 1}
