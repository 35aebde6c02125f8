"""The stage that looks at the geometry of a run's finished coders: compares decoders, writes, says what it left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panscope.events import Reporter
from panscope.geometry import pairs as choosing
from panscope.geometry.baselines import Baselines
from panscope.geometry.matching import match
from panscope.geometry.mmcs import mmcs, upper
from panscope.geometry.neighbours import Counts, Neighbourhood, densest, neighbourhood
from panscope.geometry.pairs import CoderInfo, Pair
from panscope.geometry.projection import MIN_POINTS, project
from panscope.geometry.record import Analysis, GeometryFolder, file_name
from panscope.geometry.splitting import split
from panscope.geometry.tokens import nearest_tokens, token_columns, token_numbers
from panscope.kernels.cosines import Nearest, Progress, excluding_self, nearest
from panscope.lms.load import device_of, load
from panscope.lms.vocabulary import Vocabulary, vocabulary
from panscope.runs.decoders import Decoders, chosen, known_coders
from panscope.runs.run import Run
from panscope.storage.locks import locked
from panscope.types import UserError

ANALYSES = ("mmcs", "matching", "splitting", "neighbourhood", "tokens")
"""Everything there is, in the order it is done."""

Entry = dict[str, Any]
"""What the summary says of one analysis."""


@dataclass(frozen=True)
class GeometryOptions:
    """What is to be found out, and about which coders."""

    analyses: tuple[str, ...] = ()
    """Some of ANALYSES; without any, what `chosen` says."""
    coders: tuple[str, ...] = ()
    """All of the run if none is named."""
    latents: tuple[int, ...] = ()
    """Seeds of neighbourhoods, of the one coder named; without any, one is chosen at every place."""
    tokens: bool = False
    """Whether the tokens that latents point to are looked for too, which takes the language model."""
    against: Path | None = None
    """Another run, whose coders are compared with those of this one."""
    pairs: int = 10
    """At most so many matchings and so many splittings a place."""
    counts: Counts = field(default_factory=Counts)
    """How many neighbours are taken from each coder."""
    seed: int = 0
    """Fixes the samples."""
    device: str | None = None
    """None for that of the suite."""

    def __post_init__(self) -> None:
        counts = (self.counts.own, self.counts.other, self.counts.wider)
        if self.pairs < 1:
            raise UserError(f"pairs is {self.pairs}: give at least 1")
        if min(counts) < 0:
            raise UserError(f"neighbours are {' '.join(map(str, counts))}: give three numbers from 0")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}: give a number from 0")
        if self.latents and self.analyses and "neighbourhood" not in self.analyses:
            raise UserError("latent asks for a neighbourhood, which is not among the analyses: add it, or leave it out")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The analyses named; else those that coders, latents and the other run call for, without tokens."""
        if self.analyses:
            return self.analyses
        if self.latents:
            return ("neighbourhood",)
        pairs = ("matching", "splitting")
        return pairs if self.against is not None else ("mmcs", *pairs, "neighbourhood")


def compare_decoders(run: Run, asked: GeometryOptions, reporter: Reporter) -> list[Entry]:
    """Do what is asked, into `RUN/geometry`; what was found, as the summary has it.

    Raises UserError for coders or latents that are not there, or runs that have nothing to compare.
    """
    with locked(run.path):
        run.sweep()
        geometry = _Geometry(run, asked, reporter)
        entries = []
        try:
            for analysis in ANALYSES:
                if analysis in asked.chosen or (analysis == "tokens" and asked.tokens):
                    entries += geometry.do(analysis)
        finally:
            reporter.ended()
        return entries


class _Geometry:
    """One call of `compare_decoders`, with what its analyses share: decoders, baselines, who is nearest to whom."""

    def __init__(self, run: Run, asked: GeometryOptions, reporter: Reporter) -> None:
        model = run.suite.model
        self._model = model if asked.device is None else model.replace(device=asked.device)
        self._asked, self._reporter = asked, reporter
        everyone = known_coders(run)
        self._coders = chosen(everyone, asked.coders)
        self._others = everyone if asked.against is None else _others(run, asked.against, self._coders)
        _check_latents(asked, self._coders)
        self._decoders = Decoders(device_of(self._model))
        self._baselines = Baselines(asked.seed, self._decoders.device)
        self._own: dict[str, Nearest] = {}
        self._folder = GeometryFolder(run.geometry_folder, asked.seed)
        outdated = self._folder.remove_outdated({coder.name: coder.xxh3 for coder in everyone})
        if outdated:
            reporter.say(f"{outdated} analyses were of weights that have changed since: taken out of the summary")

    def do(self, analysis: str) -> list[Entry]:
        """All of one kind."""
        steps: dict[str, Callable[[], list[Entry]]] = {
            "mmcs": self._mmcs,
            "matching": lambda: [self._matching(*pair) for pair in self._bounded("matching", choosing.matchings)],
            "splitting": lambda: [self._splitting(*pair) for pair in self._bounded("splitting", choosing.splittings)],
            "neighbourhood": self._neighbourhoods,
            "tokens": self._tokens,
        }
        return steps[analysis]()

    def _doing(self, what: str) -> Progress:
        return lambda done, total: self._reporter.progress(what, done, total, "latents")

    def _mmcs(self) -> list[Entry]:
        """One entry for all coders, those looked at before included; entered again after every coder."""
        entries = [entry for entry in self._folder.read() if entry["kind"] == "mmcs"]
        for coder in self._coders:
            before = entries[-1] if entries else {"coders": {}, "numbers": {}}
            weights = before["coders"] | _weights(coder)
            numbers = dict(sorted((before["numbers"] | {coder.name: self._mmcs_of(coder)}).items()))
            tables = {"mmcs.parquet": _as_columns(numbers)}
            entries = [self._folder.record(Analysis("mmcs", {}, weights, numbers, tables))]
        return entries

    def _mmcs_of(self, coder: CoderInfo) -> dict[str, Any]:
        found = self._decoders.get(coder)
        chance = self._baselines.own(len(found), found.width, self._doing(f"random baseline of {coder.name}"))
        earlier = upper(found, self._doing(f"mmcs of {coder.name}, upper triangle"))
        return mmcs(found, self._nearest_in(coder), earlier, chance) | {"seed": self._asked.seed}

    def _nearest_in(self, coder: CoderInfo) -> Nearest:
        """Who is nearest to each latent in its own coder."""
        if coder.name not in self._own:
            rows = self._decoders.get(coder).rows
            k, limits = max(1, self._asked.counts.own), excluding_self(len(rows))
            progress = self._doing(f"nearest within {coder.name}")
            self._own[coder.name] = nearest(rows, rows, k, limits=limits, progress=progress)
        return self._own[coder.name]

    def _bounded(self, what: str, order: Callable[[Sequence[Pair]], list[Pair]]) -> list[Pair]:
        """The pairs of an analysis, the most telling of each place; says what is left out."""
        pairs, most = order(self._pairs()), self._asked.pairs
        by_place: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_place.setdefault(pair[0].place, []).append(pair)
        kept = [pair for place in by_place.values() for pair in place[:most]]
        if len(kept) < len(pairs):
            longest = max(map(len, by_place.values()))
            self._reporter.say(
                f"{what}: {len(pairs) - len(kept)} of {len(pairs)} pairs of coders are left out, at most {most} a site "
                f"are done; for all of them add --pairs {longest}, for some name them by --coder"
            )
        if not pairs:
            kind = "coders of different widths" if what == "splitting" else "two coders"
            self._reporter.say(f"{what}: there are no {kind} with the same wiring and sites, so there is none")
        return kept

    def _pairs(self) -> list[Pair]:
        """All that may be compared: with one coder named, those that it is in; with several, those among them."""
        if self._asked.against is not None:
            return choosing.pairs_between(self._coders, self._others)
        if len(self._asked.coders) == 1:
            return [pair for pair in choosing.pairs_among(self._others) if self._coders[0] in pair]
        return choosing.pairs_among(self._coders)

    def _matching(self, a: CoderInfo, b: CoderInfo) -> Entry:
        what = f"matching of {a.name} to {b.name}"
        found = match(self._decoders.get(a), self._decoders.get(b), self._baselines, self._doing(what))
        columns = {
            "latent": list(range(len(found.partner))),
            "partner": found.partner,
            "cosine": found.cosine,
            "random_cosine": found.random_cosine,
        }
        about = {"a": a.name, "b": b.name, **self._about(a)}
        tables = {f"matching/{_both(a, b)}.parquet": columns}
        return self._folder.record(Analysis("matching", about, _weights(a, b), found.numbers(), tables))

    def _splitting(self, narrow: CoderInfo, wide: CoderInfo) -> Entry:
        what = f"splitting of {narrow.name} in {wide.name}"
        found = split(self._decoders.get(narrow), self._decoders.get(wide), self._baselines, self._doing(what))
        columns = {
            "latent": list(range(len(found.parent))),
            "parent": found.parent,
            "cosine": found.cosine,
            "is_new": found.is_new,
            "explained": found.explained,
            "random_explained": found.random_explained,
        }
        children = {"latent": list(range(found.narrow)), "children": found.children}
        name = f"splitting/{_both(narrow, wide)}"
        tables = {f"{name}.parquet": columns, f"{name}.children.parquet": children}
        about = {"narrow": narrow.name, "wide": wide.name, **self._about(narrow)}
        return self._folder.record(Analysis("splitting", about, _weights(narrow, wide), found.numbers(), tables))

    def _neighbourhoods(self) -> list[Entry]:
        """Those asked for; else one at every place, where there are enough points for one."""
        if self._asked.latents:
            coder = self._coders[0]
            return [self._entered(coder, self._around(coder, latent)) for latent in self._asked.latents]
        entries = []
        for place, group in choosing.places(self._coders).items():
            coder = choosing.seed_coder(group, self._others)
            latent = densest(self._nearest_in(coder))
            found = None if latent is None else self._around(coder, latent)
            if found is None or len(found.points) < MIN_POINTS:
                self._reporter.say(
                    f"neighbourhood: {place} has fewer than {MIN_POINTS} latents to show, so there is none"
                )
            else:
                entries.append(self._entered(coder, found))
        return entries

    def _around(self, coder: CoderInfo, latent: int) -> Neighbourhood:
        other, wider = choosing.companions(coder, self._others)
        found = {role: self._decoders.get(c) for role, c in (("other", other), ("wider", wider)) if c is not None}
        return neighbourhood(self._decoders.get(coder), latent, self._asked.counts, **found)

    def _entered(self, coder: CoderInfo, found: Neighbourhood) -> Entry:
        places = project(found.rows, self._asked.seed)
        points, latent = found.points, found.points[0].latent
        columns = {
            "coder": [point.coder for point in points],
            "latent": [point.latent for point in points],
            "cosine": [point.cosine for point in points],
            "x": places[:, 0],
            "y": places[:, 1],
            "role": [point.role for point in points],
        }
        members = {point.coder for point in points}
        weights = {known.name: known.xxh3 for known in (coder, *self._others) if known.name in members}
        about = {"coder": coder.name, "latent": latent, **self._about(coder)}
        tables = {f"neighbourhood/{file_name(coder.name)}-{latent}.parquet": columns}
        return self._folder.record(Analysis("neighbourhood", about, weights, found.numbers(), tables))

    def _tokens(self) -> list[Entry]:
        """For every coder whose decoder vectors lie in the residual stream."""
        there = [coder for coder in self._coders if coder.in_residual]
        if len(there) < len(self._coders):
            left = ", ".join(coder.name for coder in self._coders if not coder.in_residual)
            self._reporter.say(
                f"tokens: {left} left out, since their sites are not in the residual stream, as tokens are"
            )
        words = vocabulary(load(self._model)) if there else None
        return [self._tokens_of(coder, words) for coder in there if words is not None]

    def _tokens_of(self, coder: CoderInfo, words: Vocabulary) -> Entry:
        found = nearest_tokens(
            self._decoders.get(coder), coder.pieces, words.matrices, self._doing(f"tokens of {coder.name}")
        )
        tables = {f"tokens/{file_name(coder.name)}.parquet": token_columns(found, words.texts)}
        about = {"coder": coder.name, "place": coder.place}
        return self._folder.record(Analysis("tokens", about, _weights(coder), token_numbers(found), tables))

    def _about(self, coder: CoderInfo) -> dict[str, Any]:
        against = {} if self._asked.against is None else {"against": str(self._asked.against.resolve())}
        return {"place": coder.place, **against}


def _others(run: Run, against: Path, coders: Sequence[CoderInfo]) -> list[CoderInfo]:
    """The coders of the other run at the sites of one of ours; raises UserError if none does."""
    other = Run.open(against)
    if other.path.resolve() == run.path.resolve():
        raise UserError(f"--against {str(against)!r} is the run itself: its coders are compared without --against")
    ours = {(coder.place, coder.width) for coder in coders}
    found = known_coders(other, f"@{other.path.resolve().name}")
    alike = [coder for coder in found if (coder.place, coder.width) in ours]
    if not alike:
        raise UserError(
            f"--against {str(against)!r} has no coder with the wiring, sites and decoder width of one of "
            f"{str(run.path)!r}: give a run on the same model with a site in common"
        )
    return alike


def _check_latents(asked: GeometryOptions, coders: Sequence[CoderInfo]) -> None:
    if not asked.latents:
        return
    if len(coders) != 1:
        raise UserError(f"--latent needs the one coder that it is of, but {len(coders)} are meant: name it by --coder")
    for latent in asked.latents:
        if not 0 <= latent < coders[0].latents:
            raise UserError(
                f"--latent {latent} does not exist: coder {coders[0].name!r} has {coders[0].latents} latents, so give "
                f"0 to {coders[0].latents - 1}"
            )


def _weights(*coders: CoderInfo) -> dict[str, str]:
    return {coder.name: coder.xxh3 for coder in coders}


def _both(a: CoderInfo, b: CoderInfo) -> str:
    return f"{file_name(a.name)}--{file_name(b.name)}"


def _as_columns(numbers: dict[str, dict[str, Any]]) -> dict[str, list[Any]]:
    """A row a coder, null for what is undefined; quantiles stay in the summary."""
    flat = [key for key, value in next(iter(numbers.values())).items() if not isinstance(value, dict)]
    columns: dict[str, list[Any]] = {"coder": list(numbers)}
    return columns | {key: [None if row[key] != row[key] else row[key] for row in numbers.values()] for key in flat}
