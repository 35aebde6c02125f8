"""Coders on a running language model: read their latents, put reconstructions in, change latents, follow gradients.

`attach` lasts as long as its `with` block, through any passes of the model that anyone runs in it, and leaves the model
exactly as it was, also after an error.

What stands at a site that a coder predicts, y, becomes
  - y itself, to the bit, where the coder is only read, or is spliced with its error term (Marks et al. 2024);
  - y_hat, its reconstruction, where it is spliced without (Bricken et al. 2023);
plus, for every edit, the change of the code times the latent's decoder vector. Every coder at a site reads what stood
there before any of them wrote. With `gradients` and an error term, y = y_hat(f) + (y - y_hat), f and the error apart: a
gradient reaches f by way of y_hat alone and goes on to earlier layers as if no coder were there (Marks et al. 2024).

Shape letters: N sequences, T tokens a sequence, B = N T rows, D width of what is read, E width of what is
predicted, n latents.
"""

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from panscope.formats.site_names import site_of_lens_name
from panscope.intervene.edits import Edit, Edits, Positions, check_amount, check_positions, covered
from panscope.intervene.record import Record
from panscope.lms.model import LanguageModel
from panscope.lms.site_resolver import PassStart, SiteResolver
from panscope.loading.codes import Codes, stacked
from panscope.loading.loaded_coder import LoadedCoder
from panscope.site_kinds import KINDS
from panscope.types import Site, UserError

Coders = LoadedCoder | Sequence[LoadedCoder] | Mapping[str, LoadedCoder]


@dataclass(frozen=True)
class Port:
    """A place where one coder reads, and the place where it writes what follows from that."""

    name: str
    coder: LoadedCoder
    reads: tuple[Site, ...]
    predicts: Site | None
    """None for a crosscoder, which knows its codes when it is too late to write."""
    edits: Edits | None
    replaces: bool
    """Whether y_hat takes the place of y."""
    at: Positions = None
    """At which positions."""

    @property
    def key(self) -> tuple[str, Site]:
        """What its codes are recorded under."""
        return self.name, self.reads[0]


@dataclass
class _Pass:
    """What is known so far of the pass under way."""

    visited: set[Site] = field(default_factory=set)
    """Gradient checkpointing comes to a site again when it computes a block anew."""
    rows: dict[Site, Tensor] = field(default_factory=dict)
    """[N, T, D] where several sites make one row."""
    read: dict[tuple[str, Site], tuple[Codes, Tensor]] = field(default_factory=dict)
    """What a coder that writes read: its codes, and its rows x [B, D]."""


class Attached:
    """What `attach` gives: the latents and activations of the last pass, or of all passes of one `generate`."""

    def __init__(self, ports: Sequence[Port], keep: Collection[Site], *, gradients: bool) -> None:
        self._ports, self._keep, self._gradients = tuple(ports), frozenset(keep), gradients
        self._record, self._pass = Record(), _Pass()
        self._reading: dict[Site, list[Port]] = {}
        self._writing: dict[Site, list[Port]] = {}
        for port in sorted(self._ports, key=lambda port: not port.replaces):  # the one that replaces comes first
            for site in port.reads:
                self._reading.setdefault(site, []).append(port)
            if port.predicts is not None and (gradients or port.edits is not None or port.replaces):
                self._writing.setdefault(port.predicts, []).append(port)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(port.name for port in self._ports)) or "no coder"
        tokens = self.positions
        seen = f"tokens {tokens.start} to {tokens.stop - 1}" if tokens else "no pass yet"
        return f"Attached({names}; {seen})"

    @property
    def latents(self) -> dict[str, Codes]:
        """The codes of each coder as it read them, before any edit: leading shape [N, T]; [sites, N, T] of a
        multilayer coder, whose sites are those of its wiring, in order."""
        names = dict.fromkeys(port.name for port in self._ports)
        return _Named("coder", {name: self._codes(name) for name in names if self._has(name)})

    @property
    def activations(self) -> dict[Site, Tensor]:
        """[N, T, D] what stood at each site, before anything was put in, in the model's dtype."""
        found = {site: self._record.activations(site) for site in sorted(self._keep) if self._record.has(site)}
        return _Named("site", found)

    @property
    def positions(self) -> range:
        """The places in the sequence of those T tokens, from 0; they begin later where a cache was there before."""
        return range(self._record.first, self._record.first + self._record.tokens)

    def parts(self, name: str) -> dict[Site, Codes]:
        """The codes of one coder by the first site it read them at; one entry but for a multilayer coder.

        With `gradients`, their values are what gradients are asked for. Raises UserError for a coder that is not
        attached.
        """
        ports = [port for port in self._ports if port.name == name]
        if not ports:
            raise UserError(_not_attached(name, [port.name for port in self._ports]))
        return {port.reads[0]: self._record.codes(port.key) for port in ports if self._record.has(port.key)}

    def _has(self, name: str) -> bool:
        return all(self._record.has(port.key) for port in self._ports if port.name == name)

    def _codes(self, name: str) -> Codes:
        pieces = list(self.parts(name).values())
        return pieces[0] if len(pieces) == 1 else stacked(pieces)

    def begin(self, entry: PassStart) -> None:
        """A pass begins."""
        self._pass = _Pass()
        self._record.begin(entry)

    def end(self, cache: Any) -> None:
        """A pass is over, and gave this cache."""
        self._record.end(cache)

    def close(self) -> None:
        """There are no more passes."""
        self._pass = _Pass()
        self._record.close()

    def visit(self, site: Site, value: Tensor) -> Tensor:
        """What takes the place of `value` [N, T, D] at a site; the same tensor where nothing does."""
        again = site in self._pass.visited
        self._pass.visited.add(site)
        if site in self._keep and not again:
            self._record.add(site, value if self._gradients else value.detach())
        with torch.set_grad_enabled(self._follows):
            for port in self._reading.get(site, ()):
                self._read(port, site, value, again)
        return self._written(site, value)

    def _read(self, port: Port, site: Site, value: Tensor, again: bool) -> None:
        x = value
        if len(port.reads) > 1:
            self._pass.rows[site] = value
            if not self._pass.rows.keys() >= set(port.reads):
                return
            x = torch.cat([self._pass.rows[one] for one in port.reads], dim=-1)
        x = self._live(port, x)
        codes = port.coder.encode(x)
        if self._follows and not codes.values.requires_grad:
            codes = codes.with_values(codes.values.detach().requires_grad_())
        if not again:
            self._record.add_codes(port.key, codes)
        if port.predicts is not None:
            self._pass.read[port.key] = codes, x.reshape(-1, x.shape[-1])

    def _live(self, port: Port, x: Tensor) -> Tensor:
        """Rows [N, T, D] that gradients reach where y_hat replaces y; elsewhere codes are a beginning of their own."""
        if not self._follows:
            return x
        mask = self._covered(port.at, x) if port.replaces else None
        if mask is None:
            return x if port.replaces else x.detach()
        return torch.where(mask.view(*x.shape[:2], 1), x, x.detach())

    def _written(self, site: Site, value: Tensor) -> Tensor:
        writing = self._writing.get(site, ())
        if not any(port.edits is not None or port.replaces or self._follows for port in writing):
            return value
        wide = functools.reduce(torch.promote_types, [port.coder.dtype for port in writing], value.dtype)
        total = value.reshape(-1, value.shape[-1]).to(wide)
        for port in writing:
            total = self._with(port, total, value)
        return total.to(value.dtype).view_as(value)

    def _with(self, port: Port, total: Tensor, value: Tensor) -> Tensor:
        """[B, E] what stands at the site after one coder; where no gradient is followed, what it adds is a constant."""
        codes, x = self._pass.read[port.key]
        if self._follows and not (port.replaces and port.at is None):
            part = port.coder.part(codes, x).to(total.dtype)
            total = total + (part - part.detach())
        if port.replaces:
            with torch.set_grad_enabled(self._follows):
                y_hat = port.coder.decode(codes, x).view_as(total).to(total.dtype)
            mask = self._covered(port.at, value)
            total = y_hat if mask is None else torch.where(mask[:, None], y_hat, total)
        if port.edits is not None:
            with torch.set_grad_enabled(self._follows):
                old = codes.columns(port.edits.latents)
                new = port.edits.new(old, lambda positions: self._covered(positions, value))
                change = port.coder.change(port.edits.latents, new - old, x).to(total.dtype)
            total = total + change
        return total

    @property
    def _follows(self) -> bool:
        return self._gradients and torch.is_grad_enabled()

    def _covered(self, positions: Positions, value: Tensor) -> Tensor | None:
        """[B] bool: the rows at some positions; None for all."""
        sequences, tokens = value.shape[:2]
        return covered(positions, self._record.past, sequences, tokens, value.device)


def site_named(name: object) -> Site | None:
    """The site of `L02.resid_post` or, as TransformerLens names it, `blocks.2.hook_resid_post`; None for others."""
    if not isinstance(name, str):
        return None
    try:
        return Site.parse(name)
    except UserError:
        return site_of_lens_name(name)


class _Named(dict[Any, Any]):
    """A dictionary that says what it has where it is asked for what it has not."""

    def __init__(self, what: str, found: Mapping[Any, Any]) -> None:
        super().__init__(found)
        self._what = what

    def __missing__(self, key: Any) -> Any:
        """Also by the coder itself, or by a site's name, ours or TransformerLens'."""
        other = key.name if isinstance(key, LoadedCoder) else site_named(key) if self._what == "site" else None
        if other in self:
            return self[other]
        available = ", ".join(map(str, self)) or "nothing; run a pass of the model inside the block"
        name = key.name if isinstance(key, LoadedCoder) else str(key)
        raise UserError(f"{self._what} {name!r} was not recorded; available: {available}")


@contextlib.contextmanager
def attach(
    model: LanguageModel | nn.Module,
    coders: Coders = (),
    *,
    read: Site | str | Sequence[Site | str] = (),
    edits: Edit | Sequence[Edit] = (),
    splice: bool | str | Collection[str] | Mapping[str, Positions] = False,
    error_term: bool = False,
    gradients: bool = False,
) -> Iterator[Attached]:
    """While the `with` block lasts, `coders` see every pass of `model` and change it as asked.

    `model` is a `LanguageModel` or a Hugging Face causal language model of a supported family, `coders` one or several;
    names are those of a mapping or the coders' own. `read`: sites to keep activations [N, T, D] of beside those that
    coders read or predict. `splice` (True for all, names, or names with positions): put the reconstruction in (Bricken
    et al. 2023); with `error_term` what it misses is added back, so that a pass without edits gives the model's own
    logits (Marks et al. 2024, Sparse Feature Circuits). `edits` are made in order, spliced or not (Templeton et al.
    2024). `gradients`: the values of `parts(name)` become part of the pass, for autograd; run the pass, and `backward`,
    inside the block and with gradients on. Without it what is put in or added is a constant: gradients pass beside it.

    Positions count from 0 in the sequence as it is given, padding included, and go on through `generate`; those that
    are never reached change nothing. Beam search, which moves sequences about, is not followed. A crosscoder reads
    sites after those it predicts, so its latents can be read but not spliced or edited. Compiled models run as they
    were before they were compiled.

    Raises UserError for a coder that does not fit the model, for names, sites or latents that do not exist, for
    positions and amounts that are none, and where two reconstructions would take one place.
    """
    site_resolver = model.site_resolver if isinstance(model, LanguageModel) else SiteResolver(model)
    named = named_coders(coders)
    edits = [_by_name(edit, named) for edit in ([edits] if isinstance(edits, Edit) else edits)]
    if error_term and not splice:
        raise UserError("error_term is True, but nothing is spliced: set splice too, or leave error_term out")
    spliced = _spliced(named, splice)
    _check_names(named, edits, spliced)
    replacing = {} if error_term else spliced
    ports = [port for name, coder in named.items() for port in _ports(name, coder, edits, replacing)]
    _check_ports(ports, site_resolver, spliced)
    keep = {site for coder in named.values() for site in coder.wiring.sites()} | set(_sites(read))
    attached = Attached(ports, keep, gradients=gradients)
    visits = {site: lambda value, site=site: attached.visit(site, value) for site in sorted(keep)}
    try:
        with site_resolver.tapped(visits, attached.begin, attached.end):
            yield attached
    finally:
        attached.close()


def _sites(read: Site | str | Sequence[Site | str]) -> list[Site]:
    given = [read] if isinstance(read, Site | str) else read
    return [site if isinstance(site, Site) else site_named(site) or Site.parse(site) for site in given]


def _by_name(edit: Edit, named: Mapping[str, LoadedCoder]) -> Edit:
    """The edit with the name under which its coder is attached."""
    if not isinstance(edit.coder, LoadedCoder):
        return edit
    names = [name for name, coder in named.items() if coder is edit.coder]
    return replace(edit, coder=names[0] if names else edit.coder.name)


def named_coders(coders: Coders) -> dict[str, LoadedCoder]:
    """The coders by name; raises UserError where two have the same."""
    if isinstance(coders, Mapping):
        return dict(coders)
    several = [coders] if isinstance(coders, LoadedCoder | str) else list(coders)
    for coder in several:
        if not isinstance(coder, LoadedCoder):
            raise UserError(f"a coder is {coder!r}: give coders that `load` or `open_run(...).coder` made")
    named = {coder.name: coder for coder in several}
    if len(named) < len(several):
        twice = next(name for name in named if sum(coder.name == name for coder in several) > 1)
        raise UserError(f"two coders are both named {twice!r}: give a mapping of names to coders")
    return named


def _spliced(
    named: Mapping[str, LoadedCoder], splice: bool | str | Collection[str] | Mapping[str, Positions]
) -> dict[str, Positions]:
    """Where each spliced coder's reconstruction goes."""
    if isinstance(splice, Mapping):
        return dict(splice)
    names = [splice] if isinstance(splice, str) else splice
    return dict.fromkeys(named if names is True else names or ())


def _ports(name: str, coder: LoadedCoder, edits: Sequence[Edit], replacing: Mapping[str, Positions]) -> list[Port]:
    wiring, replaces, at = coder.wiring, name in replacing, replacing.get(name)
    own = [edit for edit in edits if edit.coder == name]
    if wiring.kind.joins_columns:
        return [Port(name, coder, wiring.reads, None, _edits(coder, own), replaces, at)]
    ports = []
    for site, predicted in zip(wiring.reads, wiring.predicts, strict=True):
        here = _edits(coder, [edit for edit in own if edit.site in (None, site)])
        ports.append(Port(name, coder, (site,), predicted, here, replaces, at))
    return ports


def _edits(coder: LoadedCoder, edits: Sequence[Edit]) -> Edits | None:
    """None where nothing is to be changed."""
    found = Edits(edits, coder.width, coder.device) if edits else None
    return found if found is not None and len(found.latents) else None


def _check_names(named: Mapping[str, LoadedCoder], edits: Sequence[Edit], spliced: Mapping[str, Positions]) -> None:
    for name in [*(str(edit.coder) for edit in edits), *spliced]:
        if name not in named:
            raise UserError(_not_attached(name, named))
    for positions in (*spliced.values(), *(edit.positions for edit in edits)):
        check_positions(positions)
    for edit in edits:
        check_amount(edit)
        sites = named[str(edit.coder)].wiring.reads
        if edit.site is not None and edit.site not in sites:
            raise UserError(f"site {edit.site} of an edit: coder {edit.coder!r} reads {' '.join(map(str, sites))}")


def _not_attached(name: str, names: Iterable[str]) -> str:
    return f"coder {name!r} is not attached: name one of {', '.join(dict.fromkeys(names)) or 'those you attach'}"


def _check_ports(ports: Sequence[Port], site_resolver: SiteResolver, spliced: Mapping[str, Positions]) -> None:
    taken: dict[Site, str] = {}
    for port in ports:
        _check_fit(port, site_resolver)
        if port.predicts is None and (port.edits is not None or port.name in spliced):
            raise UserError(
                f"coder {port.name!r} is a crosscoder, whose codes are known after the sites it predicts: read its "
                "latents, and splice or edit another coder"
            )
        if port.predicts is None:
            continue
        if _place(port.predicts) < _place(port.reads[0]):
            raise UserError(f"coder {port.name!r} predicts {port.predicts}, which comes before {port.reads[0]}")
        if port.replaces and taken.setdefault(port.predicts, port.name) != port.name:
            raise UserError(
                f"coders {taken[port.predicts]!r} and {port.name!r} would both take the place of {port.predicts}: "
                "splice one of them, or set error_term"
            )


def _check_fit(port: Port, site_resolver: SiteResolver) -> None:
    config = port.coder.wired.coder.config
    wanted = [(site, config.d_in // len(port.reads)) for site in port.reads]
    if port.predicts is not None:
        wanted.append((port.predicts, config.d_out))
    for site, width in wanted:
        if site_resolver.width(site) != width:
            raise UserError(
                f"coder {port.name!r} takes rows of {width} numbers at {site}, where this model has "
                f"{site_resolver.width(site)}: give the model it was trained on, or one fine-tuned from that"
            )
        device = next(site_resolver.block(site).parameters()).device
        if device != port.coder.device:
            raise UserError(
                f"coder {port.name!r} is on {port.coder.device}, the model's {site} on {device}: move it by "
                f"coder.to({str(device)!r})"
            )


def _place(site: Site) -> tuple[int, int]:
    return site.layer, KINDS[site.kind].order
