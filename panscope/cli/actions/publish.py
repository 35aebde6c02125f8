"""`panscope publish`: a run as a repository of the Hugging Face hub, with a model card."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.publish import Publish
from panscope.cli.listening import listening, say
from panscope.config import expanded
from panscope.publishing.publish import PublishOptions


def run(flags: Publish, console: Console) -> int:
    """Publish, or write what would be published."""
    dry_run = None if flags.dry_run is None else expanded(flags.dry_run)
    options = PublishOptions(flags.licence, flags.eval, flags.private, dry_run)
    with listening(console) as heard:
        made = api.publish(flags.run_folder, flags.to, options, **heard)
    if made.sent is None:
        say(console, f"nothing was sent; what would be is in {flags.dry_run}")
    else:
        say(console, f"{made.sent.files} files sent, {made.sent.there} were there: {made.sent.url}")
    return 0
