"""`panscope rollouts`: a language model's own responses to prompts, as text to measure coders on."""

from rich.console import Console

from panscope import api
from panscope.cli.flags.rollouts import MakeRollouts
from panscope.cli.listening import listening, say
from panscope.lms.load import LanguageModelConfig
from panscope.runs.rollouts import RolloutConfig, Rollouts


def run(flags: MakeRollouts, console: Console) -> int:
    """Sample, and say what was made."""
    names = ("count", "tokens", "temperature", "seed", "batch")
    fields = {name: getattr(flags, name) for name in names} | {"user": flags.chat_user, "model": flags.chat_model}
    config = RolloutConfig.read(fields, "rollouts")
    places = {"path": flags.model, "revision": flags.revision, "device": flags.device, "dtype": flags.dtype}
    model = LanguageModelConfig.read(places, "rollouts")
    with listening(console) as heard:
        made = api.make_rollouts(model, flags.prompts, flags.out, config, column=flags.column, **heard)
    for line in _lines(made, str(flags.out)):
        say(console, line)
    return 0


def _lines(made: Rollouts, out: str) -> list[str]:
    """What there is now."""
    lines = [
        f"{out}: {made.count:,} rollouts of {made.prompts:,} prompts, {made.tokens:,} tokens; "
        f"{made.has_ended:.1%} ended by themselves",
        f"mean -log p {made.surprise:.3f} nats a token, mean entropy {made.entropy:.3f}",
    ]
    if made.too_long:
        lines.insert(0, f"{made.too_long:,} prompts are as long as the context and were left out")
    return lines
