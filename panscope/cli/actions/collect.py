"""`panscope collect`: store the activations that a suite reads, once, for any number of trainings."""

from pathlib import Path

from rich.console import Console

from panscope import api
from panscope.activations.store.manifest import Manifest
from panscope.activations.store.opening import is_remote
from panscope.cli.flags.collect import Collect
from panscope.cli.listening import listening, say
from panscope.cli.suite_flags import replaced, suite_from
from panscope.cli.units import in_bytes
from panscope.config import expanded
from panscope.planning.plan import SuiteConfig
from panscope.runs.collection import StoreOptions
from panscope.types import UserError

_NOT_OF_THE_SUITE = ("out", "store_dtype", "shard_gib", "verify", "log")


def run(flags: Collect, console: Console) -> int:
    """Collect, or check a store."""
    if flags.verify is not None:
        _check_alone(flags)
        return _verified(flags.verify, console)
    options = StoreOptions(flags.store_dtype, flags.shard_gib)
    with listening(console, log=flags.log) as heard:
        manifest = api.collect(_suite(flags), _folder(flags), options, **heard)
    size = in_bytes(_bytes(manifest))
    say(console, f"{flags.out}: {manifest.rows:,} rows of {len(manifest.sites)} sites, {size}")
    return 0


def _folder(flags: Collect) -> Path:
    if flags.out is None:
        raise UserError("--out is missing: give the folder of the store, new or begun")
    if is_remote(flags.out):
        raise UserError(f"--out {flags.out!r} is not on this machine: collect into a folder and copy it there")
    return expanded(flags.out)


def _check_alone(flags: Collect) -> None:
    with_it = [name for name, value in vars(flags).items() if value != getattr(Collect, name) and name != "verify"]
    if with_it:
        name = with_it[0].replace("_", "-")
        raise UserError(f"--verify checks a store as it is, so --{name} cannot be combined with it")


def _suite(flags: Collect) -> SuiteConfig:
    own = {name: value for name, value in vars(flags).items() if value is not None and name not in _NOT_OF_THE_SUITE}
    name = own.pop("suite", None)
    if name is not None:
        return replaced(name, own)  # --sites may name others than its coders have.
    if own:
        own |= {"width": (1,), "sparsity": (1,)}  # No coder is trained: sites are what counts.
    return suite_from(None, own)


def _verified(store: str, console: Console) -> int:
    """Say what is damaged."""
    found = api.verify_store(store)
    for sentence in found:
        say(console, sentence)
    say(console, f"{store}: {len(found)} damaged files" if found else f"{store} is whole")
    return 2 if found else 0


def _bytes(manifest: Manifest) -> int:
    assert manifest.rows is not None
    width = sum(site.width for site in manifest.sites.values())
    return manifest.rows * width * (4 if manifest.dtype == "float32" else 2)
