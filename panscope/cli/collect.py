"""`panscope collect`: store the activations that a suite reads, once, for any number of trainings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from panscope.activations.store.manifest import Manifest, StoredType
from panscope.activations.store.opening import is_remote, open_files
from panscope.activations.store.verify import verify
from panscope.cli.display import TerminalReporter
from panscope.cli.flags import flag
from panscope.cli.suite_flags import suite_from
from panscope.cli.units import in_bytes
from panscope.config import expanded
from panscope.runs.collection import StoreOptions, collect
from panscope.types import UserError

_CACHE_BYTES = 16 << 30
"""What may be kept of a remote store that is checked."""


@dataclass(frozen=True)
class Collect:
    """Store the activations of all of a suite's sites, in one pass of the language model.

    For example
      panscope collect suite.toml --out stores/mine    what the suite would train on
      panscope collect --model ./my-model --text a.jsonl --sites resid_post --tokens 1_000_000 --out stores/mine
      panscope collect --verify stores/mine            compare every file with its checksums

    The same command goes on with a store that was interrupted; with other sites it adds them to the same rows. To train
    on a store, write source = "store" and store = "stores/mine" under [activations].
    """

    suite: Annotated[str | None, tyro.conf.Positional, flag("[SUITE]")] = None
    """A suite file (.toml) or the name of a built-in suite."""
    out: Annotated[str | None, flag("DIR")] = None
    """The folder of the store, on this machine."""
    model: Annotated[str | None, flag("PATH")] = None
    """Folder or hub id of the language model; "panscope://demo" is the built-in one."""
    revision: Annotated[str | None, flag("REV")] = None
    """Revision of a model from the hub."""
    text: Annotated[tuple[str, ...] | None, flag("FILE ...")] = None
    """Text files (.txt, .jsonl, .parquet) or one hub dataset."""
    sites: Annotated[tuple[str, ...] | None, flag("SITE ...")] = None
    """resid_post attn_z attn_out mlp_out mlp_in mlp_in_no_gain."""
    layers: Annotated[tuple[str, ...] | None, flag("LAYER ...")] = None
    """all, or layer numbers from 0."""
    tokens: Annotated[int | None, flag("N")] = None
    """Rows to store at most; fewer where the text ends before."""
    context: Annotated[int | None, flag("N")] = None
    """Tokens of a sequence at most."""
    packing: Annotated[str | None, flag("NAME")] = None
    """documents (BOS, truncate) or stream (joined by EOS, cut)."""
    chat_user: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the user's query, written before every document and never learned from."""
    chat_model: Annotated[str | None, flag("TEXT")] = None
    """For a fine-tuned model: the prefix of the model's response, written after every document."""
    seed: Annotated[int | None, flag("N")] = None
    """Fixes text order and shuffle."""
    device: Annotated[str | None, flag("NAME")] = None
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: Annotated[str | None, flag("NAME")] = None
    """float32, bfloat16 or float16: the language model's precision."""
    store_dtype: Annotated[StoredType | None, flag("NAME")] = None
    """float32 or bfloat16: what is stored; by default float32 if the model is in float32, else bfloat16."""
    shard_gib: Annotated[float, flag("N")] = 1.0
    """Size of a file at most, in GiB."""
    verify: Annotated[str | None, flag("STORE")] = None
    """Check a store instead: a folder, s3://... or gs://..."""

    def run(self, console: Console) -> int:
        """Do it; the exit status."""
        reporter = TerminalReporter(console)
        if self.verify is not None:
            self._check_alone()
            return _verified(self.verify, reporter)
        manifest = collect(self._suite(), self._folder(), StoreOptions(self.store_dtype, self.shard_gib), reporter)
        size = in_bytes(_bytes(manifest))
        reporter.say(f"{self.out}: {manifest.rows:,} rows of {len(manifest.sites)} sites, {size}")
        return 0

    def _folder(self) -> Path:
        if self.out is None:
            raise UserError("--out is missing: give the folder of the store, new or begun")
        if is_remote(self.out):
            raise UserError(f"--out {self.out!r} is not on this machine: collect into a folder and copy it there")
        return expanded(self.out)

    def _check_alone(self) -> None:
        beside = [name for name, value in vars(self).items() if value != getattr(Collect, name) and name != "verify"]
        if beside:
            raise UserError(f"--verify checks a store as it is, so --{beside[0]} cannot be combined with it")

    def _suite(self) -> Any:
        flags = {name: value for name, value in vars(self).items() if value is not None}
        for name in ("out", "store_dtype", "shard_gib"):
            flags.pop(name, None)
        name = flags.pop("suite", None)
        if name is None and flags:
            flags |= {"width": (1,), "sparsity": (1,)}  # No coder is trained: sites are what counts.
        return suite_from(name, flags)


def _verified(store: str, reporter: TerminalReporter) -> int:
    """Say what is damaged."""
    found = verify(open_files(store, cache=None, cache_bytes=_CACHE_BYTES))
    for sentence in found:
        reporter.say(sentence)
    reporter.say(f"{store}: {len(found)} damaged files" if found else f"{store} is whole")
    return 2 if found else 0


def _bytes(manifest: Manifest) -> int:
    assert manifest.rows is not None
    width = sum(site.width for site in manifest.sites.values())
    return manifest.rows * width * (4 if manifest.dtype == "float32" else 2)
