"""Coders attached to a running language model: record latents, splice in reconstructions, edit latents, take gradients.

`attach` is a context manager that affects every forward pass run in its `with` block. Afterwards, also after an error,
the model is exactly as it was.

The activation y at a site that a coder predicts becomes
  - y itself, bit for bit, if the coder is only read, or is spliced with its error term (Marks et al. 2024);
  - the reconstruction y_hat if it is spliced without the error term (Bricken et al. 2023);
plus, for every edit, the change of the code times the latent's decoder vector. All coders at a site read the activation
from before any of them is applied. With `gradients` and an error term, y = y_hat(f) + (y - y_hat), and the error does
not depend on f: gradients reach f through y_hat alone, and earlier layers as if no coder were attached (Marks et al.
2024).

Shape letters: N sequences, T tokens per sequence, B = N T rows, D input width, E output width, n latents.
"""

import contextlib
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from panscope.formats.site_names import site_of_lens_name
from panscope.intervene.edits import Edit, Edits, Positions, check_amount, check_positions, row_mask
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
    """One use of a coder: the sites that it reads, and the site that it predicts from them."""

    name: str
    coder: LoadedCoder
    reads: tuple[Site, ...]
    predicts: Site | None
    """None for a crosscoder, whose codes are known only after the sites that it predicts."""
    edits: Edits | None
    replaces: bool
    """Whether y_hat replaces y."""
    positions: Positions = None
    """The positions at which it does."""

    @property
    def key(self) -> tuple[str, Site]:
        """The key under which its codes are recorded."""
        return self.name, self.reads[0]


@dataclass
class _Pass:
    """The state of the current forward pass."""

    visited: set[Site] = field(default_factory=set)
    """Sites visited: gradient checkpointing visits a site again when it recomputes a block."""
    inputs: dict[Site, Tensor] = field(default_factory=dict)
    """[N, T, D] per site of a coder that concatenates several sites."""
    encoded: dict[tuple[str, Site], tuple[Codes, Tensor]] = field(default_factory=dict)
    """The codes and input rows x [B, D] of each port that predicts a site."""


class Attached:
    """The result of `attach`: latents and activations of the last pass, or of all passes of one `generate`."""

    def __init__(self, ports: Sequence[Port], keep: Collection[Site], *, gradients: bool) -> None:
        self._ports, self._keep, self._gradients = tuple(ports), frozenset(keep), gradients
        self._record, self._pass = Record(), _Pass()
        self._reading: dict[Site, list[Port]] = {}
        self._writing: dict[Site, list[Port]] = {}
        for port in sorted(self._ports, key=lambda port: not port.replaces):  # replace first, then add
            for site in port.reads:
                self._reading.setdefault(site, []).append(port)
            if port.predicts is not None and (gradients or port.edits is not None or port.replaces):
                self._writing.setdefault(port.predicts, []).append(port)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(port.name for port in self._ports)) or "no coder"
        tokens = self.positions
        recorded = f"tokens {tokens.start} to {tokens.stop - 1}" if tokens else "no pass yet"
        return f"Attached({names}; {recorded})"

    @property
    def latents(self) -> dict[str, Codes]:
        """The codes of each coder before edits: leading shape [N, T], or [sites, N, T] for a multilayer coder, with the
        sites in the order of its wiring."""
        names = dict.fromkeys(port.name for port in self._ports)
        return _Recorded("coder", {name: self._codes(name) for name in names if self._has(name)})

    @property
    def activations(self) -> dict[Site, Tensor]:
        """[N, T, D] per site, before splices and edits at that site, in the model's dtype."""
        found = {site: self._record.activations(site) for site in sorted(self._keep) if self._record.has(site)}
        return _Recorded("site", found)

    @property
    def positions(self) -> range:
        """The positions of the T recorded tokens in the sequence, from 0; they start later if the first pass recorded
        was given a cache."""
        return range(self._record.first, self._record.first + self._record.tokens)

    def parts(self, name: str) -> dict[Site, Codes]:
        """The codes of one coder by the first site it reads: one entry, or one per site for a multilayer coder.

        With `gradients`, take gradients with respect to their `values`. Raises UserError for a coder that is not
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

    def begin(self, start: PassStart) -> None:
        """Called when a forward pass starts."""
        self._pass = _Pass()
        self._record.begin(start)

    def end(self, cache: Any) -> None:
        """Called when a forward pass ends, with the cache that it returns."""
        self._record.end(cache)

    def close(self) -> None:
        """Called after the last forward pass."""
        self._pass = _Pass()
        self._record.close()

    def visit(self, site: Site, value: Tensor) -> Tensor:
        """The replacement of `value` [N, T, D] at a site, or the same tensor if there is none."""
        again = site in self._pass.visited
        self._pass.visited.add(site)
        if site in self._keep and not again:
            self._record.add(site, value if self._gradients else value.detach())
        with torch.set_grad_enabled(self._tracks_gradients):
            for port in self._reading.get(site, ()):
                self._encode(port, site, value, again)
        return self._replacement(site, value)

    def _encode(self, port: Port, site: Site, value: Tensor, again: bool) -> None:
        x = value
        if len(port.reads) > 1:
            self._pass.inputs[site] = value
            if not self._pass.inputs.keys() >= set(port.reads):
                return
            x = torch.cat([self._pass.inputs[one] for one in port.reads], dim=-1)
        x = self._coder_input(port, x)
        codes = port.coder.encode(x)
        if self._tracks_gradients and not codes.values.requires_grad:
            codes = codes.with_values(codes.values.detach().requires_grad_())
        if not again:
            self._record.add_codes(port.key, codes)
        if port.predicts is not None:
            self._pass.encoded[port.key] = codes, x.reshape(-1, x.shape[-1])

    def _coder_input(self, port: Port, x: Tensor) -> Tensor:
        """Rows [N, T, D] to encode: gradients flow back through them only where y_hat replaces y; elsewhere they are
        detached, and the codes are leaves of the graph."""
        if not self._tracks_gradients:
            return x
        mask = self._row_mask(port.positions, x) if port.replaces else None
        if mask is None:
            return x if port.replaces else x.detach()
        return torch.where(mask.view(*x.shape[:2], 1), x, x.detach())

    def _replacement(self, site: Site, value: Tensor) -> Tensor:
        writing = self._writing.get(site, ())
        if not any(port.edits is not None or port.replaces or self._tracks_gradients for port in writing):
            return value
        wide = functools.reduce(torch.promote_types, [port.coder.dtype for port in writing], value.dtype)
        total = value.reshape(-1, value.shape[-1]).to(wide)
        for port in writing:
            total = self._apply(port, total, value)
        return total.to(value.dtype).view_as(value)

    def _apply(self, port: Port, total: Tensor, value: Tensor) -> Tensor:
        """[B, E] the site's rows `total` after the splice and edits of one coder; without gradients, its terms are
        constants."""
        codes, x = self._pass.encoded[port.key]
        if self._tracks_gradients and not (port.replaces and port.positions is None):
            part = port.coder.part(codes, x).to(total.dtype)
            total = total + (part - part.detach())  # unchanged in value, but gradients reach the codes
        if port.replaces:
            with torch.set_grad_enabled(self._tracks_gradients):
                y_hat = port.coder.decode(codes, x).view_as(total).to(total.dtype)
            mask = self._row_mask(port.positions, value)
            total = y_hat if mask is None else torch.where(mask[:, None], y_hat, total)
        if port.edits is not None:
            with torch.set_grad_enabled(self._tracks_gradients):
                old = codes.columns(port.edits.latents)
                new = port.edits.new(old, lambda positions: self._row_mask(positions, value))
                change = port.coder.change(port.edits.latents, new - old, x).to(total.dtype)
            total = total + change
        return total

    @property
    def _tracks_gradients(self) -> bool:
        return self._gradients and torch.is_grad_enabled()

    def _row_mask(self, positions: Positions, value: Tensor) -> Tensor | None:
        """[B] bool, True for rows at `positions`; None for all rows."""
        sequences, tokens = value.shape[:2]
        return row_mask(positions, self._record.past, sequences, tokens, value.device)


def site_named(name: object) -> Site | None:
    """The site of a name such as `L02.resid_post` or TransformerLens' `blocks.2.hook_resid_post`; None for others."""
    if not isinstance(name, str):
        return None
    try:
        return Site.parse(name)
    except UserError:
        return site_of_lens_name(name)


class _Recorded(dict[Any, Any]):
    """Recorded tensors by coder name or site; raises UserError that lists the available keys for a missing one."""

    def __init__(self, key_type: str, found: Mapping[Any, Any]) -> None:
        super().__init__(found)
        self._key_type = key_type

    def __missing__(self, key: Any) -> Any:
        """Also accepts a coder itself, and a site's name in Panscope's or TransformerLens' form."""
        other = key.name if isinstance(key, LoadedCoder) else site_named(key) if self._key_type == "site" else None
        if other in self:
            return self[other]
        available = ", ".join(map(str, self)) or "nothing; run a pass of the model inside the block"
        name = key.name if isinstance(key, LoadedCoder) else str(key)
        raise UserError(f"{self._key_type} {name!r} was not recorded; available: {available}")


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
    """A context in which `coders` read, and optionally modify, every forward pass of `model`.

    `model` is a `LanguageModel` or a Hugging Face causal language model of a supported family, `coders` one or several;
    their names are the keys of a mapping or the coders' own. `read`: sites to record activations [N, T, D] of, besides
    those that coders read or predict. `splice` (True for all, names, or names with positions): replace the activation
    by the reconstruction (Bricken et al. 2023); with `error_term` the reconstruction error is added back, so that a
    pass without edits gives the model's own logits (Marks et al. 2024, Sparse Feature Circuits). `edits` are applied in
    order, to spliced and other coders (Templeton et al. 2024). `gradients`: the values of `parts(name)` become part of
    the autograd graph; run the pass and `backward` inside the block with gradients enabled. Without it, splices and
    edits are constants to autograd.

    Positions count from 0 in the input sequence, padding included, and continue through `generate`; positions that are
    never reached have no effect. Beam search, which reorders sequences, is not supported. A crosscoder reads sites
    after those it predicts, so its latents can be read but not spliced or edited. Compiled models run uncompiled.

    Raises UserError for a coder that does not fit the model, for names, sites or latents that do not exist, for invalid
    positions or amounts, and for two reconstructions at the same site.
    """
    site_resolver = model.site_resolver if isinstance(model, LanguageModel) else SiteResolver(model)
    named = named_coders(coders)
    edits = [_with_name(edit, named) for edit in ([edits] if isinstance(edits, Edit) else edits)]
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
    sites = [read] if isinstance(read, Site | str) else read
    return [site if isinstance(site, Site) else site_named(site) or Site.parse(site) for site in sites]


def _with_name(edit: Edit, named: Mapping[str, LoadedCoder]) -> Edit:
    """The edit with its coder replaced by the name under which that coder is attached."""
    if not isinstance(edit.coder, LoadedCoder):
        return edit
    names = [name for name, coder in named.items() if coder is edit.coder]
    return replace(edit, coder=names[0] if names else edit.coder.name)


def named_coders(coders: Coders) -> dict[str, LoadedCoder]:
    """The coders by name; raises UserError if two have the same name."""
    if isinstance(coders, Mapping):
        return dict(coders)
    several = [coders] if isinstance(coders, LoadedCoder | str) else list(coders)
    for coder in several:
        if not isinstance(coder, LoadedCoder):
            raise UserError(f"a coder is {coder!r}: give coders from `load` or `open_run(...).coder`")
    named = {coder.name: coder for coder in several}
    if len(named) < len(several):
        twice = next(name for name in named if sum(coder.name == name for coder in several) > 1)
        raise UserError(f"two coders are both named {twice!r}: give a mapping of names to coders")
    return named


def _spliced(
    named: Mapping[str, LoadedCoder], splice: bool | str | Collection[str] | Mapping[str, Positions]
) -> dict[str, Positions]:
    """The spliced coders by name, each with the positions of its splice."""
    if isinstance(splice, Mapping):
        return dict(splice)
    names = [splice] if isinstance(splice, str) else splice
    return dict.fromkeys(named if names is True else names or ())


def _ports(name: str, coder: LoadedCoder, edits: Sequence[Edit], replacing: Mapping[str, Positions]) -> list[Port]:
    wiring, replaces, positions = coder.wiring, name in replacing, replacing.get(name)
    own = [edit for edit in edits if edit.coder == name]
    if wiring.kind.joins_columns:
        return [Port(name, coder, wiring.reads, None, _edits(coder, own), replaces, positions)]
    ports = []
    for site, predicted in zip(wiring.reads, wiring.predicts, strict=True):
        at_site = _edits(coder, [edit for edit in own if edit.site in (None, site)])
        ports.append(Port(name, coder, (site,), predicted, at_site, replaces, positions))
    return ports


def _edits(coder: LoadedCoder, edits: Sequence[Edit]) -> Edits | None:
    """The edits of a coder, or None if they change no latent."""
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
            raise UserError(
                f"site {edit.site} of an edit is not read by coder {edit.coder!r}: choose from "
                f"{' '.join(map(str, sites))}"
            )


def _not_attached(name: str, names: Iterable[str]) -> str:
    return f"coder {name!r} is not attached: name one of {', '.join(dict.fromkeys(names)) or 'those that you attach'}"


def _check_ports(ports: Sequence[Port], site_resolver: SiteResolver, spliced: Mapping[str, Positions]) -> None:
    replaced_by: dict[Site, str] = {}
    for port in ports:
        _check_fit(port, site_resolver)
        if port.predicts is None and (port.edits is not None or port.name in spliced):
            raise UserError(
                f"coder {port.name!r} is a crosscoder, whose codes are known only after the sites it predicts: its "
                "latents can be read only, so splice or edit another coder"
            )
        if port.predicts is None:
            continue
        if _depth(port.predicts) < _depth(port.reads[0]):
            raise UserError(
                f"coder {port.name!r} predicts {port.predicts}, which comes before {port.reads[0]}, the site it reads: "
                "attach a coder that predicts a later site"
            )
        if port.replaces and replaced_by.setdefault(port.predicts, port.name) != port.name:
            raise UserError(
                f"coders {replaced_by[port.predicts]!r} and {port.name!r} would both replace {port.predicts}: "
                "splice one of them, or set error_term"
            )


def _check_fit(port: Port, site_resolver: SiteResolver) -> None:
    config = port.coder.wired.coder.config
    expected = [(site, config.d_in // len(port.reads)) for site in port.reads]
    if port.predicts is not None:
        expected.append((port.predicts, config.d_out))
    for site, width in expected:
        if site_resolver.width(site) != width:
            raise UserError(
                f"coder {port.name!r} takes rows of {width} numbers at {site}, where this model has "
                f"{site_resolver.width(site)}: give the model it was trained on, or one fine-tuned from that"
            )
        device = next(site_resolver.block(site).parameters()).device
        if device != port.coder.device:
            raise UserError(
                f"coder {port.name!r} is on {port.coder.device}, but the model's {site} is on {device}: move it with "
                f"coder.to({str(device)!r})"
            )


def _depth(site: Site) -> tuple[int, int]:
    return site.layer, KINDS[site.kind].order
