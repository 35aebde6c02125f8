"""Where the rows of a run come from: the language model as it reads, a store, or servers of one.

All give the same: rows for training that can be taken up again, the norms that normalisers are made from, and how often
the text was gone through.
"""

from collections.abc import Callable
from typing import Any, Protocol

from panscope.activations.live import LiveActivations
from panscope.activations.norms import SiteNorms, measure_norms
from panscope.activations.shuffle import SHUFFLES
from panscope.activations.source import RowSource
from panscope.activations.store.manifest import Origin
from panscope.activations.store.opening import open_store
from panscope.activations.store.stored import StoredRows
from panscope.activations.store.windows import Slice, Windows
from panscope.config import expanded
from panscope.data.documents import open_documents
from panscope.data.identity import text_identity
from panscope.data.tokens import TokenStream
from panscope.lms.model import LanguageModel
from panscope.planning.plan import Plan
from panscope.runs.identity import ModelChanges, check_same_text
from panscope.serving.client.connection import Access
from panscope.serving.client.served_rows import ServedRows, Servers
from panscope.serving.server.server import token_from_environment
from panscope.types import Site, UserError

_SAME_DATA = ("column", "packing", "context", "held_out", "chat")


class Source(Protocol):
    """A source of training rows."""

    @property
    def rows(self) -> RowSource:
        """Training batches."""
        ...

    @property
    def passes(self) -> int:
        """How often the rows have been read, the present pass included."""
        ...

    def norms(self) -> dict[Site, SiteNorms]:
        """The size of every site's rows."""
        ...

    def about(self) -> dict[str, str]:
        """Which rows these are, for the record of a coder."""
        ...

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Waiting for rows ends once `asked` is true: StoppedWaiting is raised."""
        ...


def open_source(plan: Plan, lm: LanguageModel, say: Callable[[str], None], changes: ModelChanges) -> Source:
    """The source that `plan` names; `say` is told of servers that are lost and found again.

    Raises UserError if it is not there, is of another model, which `changes` may accept, or of another text.
    """
    kind = plan.suite.activations.source
    if kind == "store":
        return StoreSource(plan, lm, changes)
    return ServerSource(plan, lm, say, changes) if kind == "server" else LiveSource(plan, lm)


def training_tokens(plan: Plan, lm: LanguageModel, epochs: int | None = None) -> TokenStream:
    """The text that coders learn from, `epochs` times or without end."""
    data, seed = plan.suite.data, plan.suite.seed
    return TokenStream(open_documents(data), lm.tokenizer, data, part="training", seed=seed, epochs=epochs)


class LiveSource:
    """The language model runs in turns with the coders."""

    def __init__(self, plan: Plan, lm: LanguageModel) -> None:
        self._plan, self._lm = plan, lm
        self._tokens = training_tokens(plan, lm)
        settings = plan.suite.activations
        live = LiveActivations(lm, self._tokens, plan.sites(), special=settings.special_tokens)
        shuffle = SHUFFLES[settings.shuffle]
        self.rows = shuffle(live, rows=plan.buffer_rows, batch=plan.batch, seed=plan.suite.seed)

    @property
    def passes(self) -> int:
        """Over the text."""
        return 1 + self._tokens.epoch

    def norms(self) -> dict[Site, SiteNorms]:
        """Measured on the first rows, text tokens only."""
        first_rows = LiveActivations(self._lm, training_tokens(self._plan, self._lm), self._plan.sites())
        return measure_norms(first_rows, self._plan.suite.activations.norm_rows)

    def about(self) -> dict[str, str]:
        """Model and text say it all."""
        return {"source": "live"}

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """The language model is never waited for without end."""


class StoreSource:
    """Rows that were collected before."""

    def __init__(self, plan: Plan, lm: LanguageModel, changes: ModelChanges) -> None:
        settings, sites = plan.suite.activations, plan.sites()
        assert settings.store is not None
        cache = None if settings.cache is None else expanded(settings.cache)
        self._store = open_store(settings.store, cache=cache, cache_bytes=round(settings.cache_gib * 2**30))
        check_origin(self._store.manifest.origin, plan, lm, self._store.where, changes)
        self._store.check_has(sites)
        manifest = self._store.manifest
        windows = Windows(self._store.rows, plan.buffer_rows, manifest.cut, Slice.parse(settings.part))
        self.rows = StoredRows(self._store, sites, windows, batch=plan.batch, seed=plan.suite.seed, device=lm.device)
        self._sites = sites

    @property
    def passes(self) -> int:
        """Over the rows."""
        return 1 + self.rows.epoch

    def norms(self) -> dict[Site, SiteNorms]:
        """Of all rows, as they were collected."""
        return {site: self._store.norms(site) for site in self._sites}

    def about(self) -> dict[str, str]:
        """The store, and the checksum of what it says of itself."""
        return {"source": "store", "store": self._store.where, "identity": self._store.manifest.identity}

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """A disk is never waited for without end."""


class ServerSource:
    """Rows that servers have, each of a slice of a store."""

    def __init__(self, plan: Plan, lm: LanguageModel, say: Callable[[str], None], changes: ModelChanges) -> None:
        settings, self._sites = plan.suite.activations, plan.sites()
        certificate = None if settings.certificate is None else expanded(settings.certificate)
        access = Access(token_from_environment(), certificate)
        self.rows = ServedRows(
            Servers(settings.servers, access, say=say),
            self._sites,
            batch=plan.batch,
            seed=plan.suite.seed,
            weights=lm.identity.weights if changes.are_refused else None,
            device=lm.device,
        )
        check_origin(self.rows.manifest.origin, plan, lm, ", ".join(settings.servers), changes)

    @property
    def passes(self) -> int:
        """Over the rows."""
        return 1 + self.rows.epoch

    def norms(self) -> dict[Site, SiteNorms]:
        """Of all rows, as they were collected."""
        return {site: self.rows.norms(site) for site in self._sites}

    def about(self) -> dict[str, str]:
        """The checksum of what their store says of itself."""
        return {"source": "server", "identity": self.rows.manifest.identity}

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Servers are waited for until then."""
        self.rows.stop_when(asked)


def check_origin(origin: Origin, plan: Plan, lm: LanguageModel, where: str, changes: ModelChanges) -> None:
    """Raise UserError unless stored rows are of this model or `changes` accepts the difference, and of this text,
    packed and held out as here."""
    suite = plan.suite
    changes.check(
        origin.model_identity,
        lm.identity,
        refusal=f"{where!r} holds activations of another model ({origin.model}) than model.path {suite.model.path!r} "
        "is now",
        advice="give that model, or a store of this one, or add --accept-changed-model to train on these rows and "
        "evaluate on this model",
    )
    if origin.special_tokens != suite.activations.special_tokens:
        raise UserError(
            f"{where!r} was collected with special_tokens = {origin.special_tokens!r}, and activations.special_tokens "
            f"is {suite.activations.special_tokens!r}: set it to the same, or collect again"
        )
    asked = suite.data.model_dump(mode="json")
    asked["chat"] = _as_stored(asked["chat"])
    pairs = [(name, _as_stored(origin.data.get(name)), asked[name]) for name in _SAME_DATA]  # old stores know no chats
    for name, stored, here in pairs:
        if stored != here:
            raise UserError(
                f"{where!r} was collected with data.{name} = {stored!r}, and the suite says {here!r}: give the same "
                "[data], so that held-out text stays held out"
            )
    check_same_text(
        origin.text,
        text_identity(suite.data),
        since=f"{where!r} was collected",
        advice="give the same text, so that held-out text stays held out, or collect again",
    )


def _as_stored(value: Any) -> Any:
    """A table without unset fields, which old stores do not know; any other value as it is."""
    return {name: item for name, item in value.items() if item is not None} if isinstance(value, dict) else value
