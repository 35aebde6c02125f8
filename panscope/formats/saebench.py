"""Results in the format of SAEBench's `core` evaluation (Karvonen et al. 2025), readable by SAEBench's tools.

The document has the fields of `CoreEvalOutput` (sae_bench/evals/core), as shown on neuronpedia.org/sae-bench. Its
metrics follow SAEBench's code, including its peculiarities, rather than Panscope's metrics of the same name. Below, a
row is a content token: neither BOS, EOS nor padding; y is a row, h its reconstruction, E their width; a batch is a set
of sequences in one forward pass. SAEBench name <- Panscope name: definition, a mean over rows unless stated otherwise.

- `kl_div_with_sae` <- `saebench_kl`: KL(clean || spliced) at every row, including the last position of a sequence.
- `kl_div_with_ablation` <- `saebench_kl_zero_ablated`: KL(clean || zero-ablated) at the same positions.
- `kl_div_score`: (kl_div_with_ablation - kl_div_with_sae) / kl_div_with_ablation.
- `ce_loss_without_sae` <- `saebench_ce_clean`: -log p(next token) at every row that has a next token, which may be
  special: the mask is that of the input token and not, as in `ce_clean`, that of the predicted token.
- `ce_loss_with_sae` <- `saebench_ce_spliced`, `ce_loss_with_ablation` <- `saebench_ce_zero_ablated`: the same.
- `ce_loss_score`: (ce_loss_with_ablation - ce_loss_with_sae) / (ce_loss_with_ablation - ce_loss_without_sae).
- `explained_variance` <- `saebench_explained_variance`: 1 - R / (S - (S / E)^2), R and S the means over batches of the
  batch's mean |y - h|^2 and mean |y|^2; SAEBench squares the mean square where the mean itself was intended.
- `explained_variance_legacy` <- `saebench_explained_variance_legacy`: 1 - |y - h|^2 / |y - batch's mean|^2. The numbers
  published in January 2025 are these, under the name explained_variance.
- `mse` <- `saebench_mse`: |y - h|^2 / rows of the batch, so it decreases with the batch size.
- `cossim` <- `cosine`. `l2_norm_in`, `l2_norm_out` <- `saebench_l2_norm_in`, `saebench_l2_norm_out`: |y|, |h|.
- `l2_ratio` <- `saebench_l2_ratio`: |h| / |y|, with 1 for |y| where it is below 0.0001.
- `relative_reconstruction_bias` <- `saebench_relative_reconstruction_bias`: mean over batches of the batch's mean |h|^2
  / mean y.h (Rajamanoharan et al. 2024, Eq. 10).
- `l0`, `l1` <- `l0`, `l1`. `total_tokens_*`: `sequences` times the context, including special tokens.
- `frac_alive`, `freq_over_*_percent`: share of latents with density above 0, 0.01, 0.1; `normalized_freq_over_*`: the
  sum of those latents' densities over the sum of all; `average_max_*_cosine_sim`: means over latents. A latent's
  `feature_density` is `firings` / `tokens`; `consistent_activation_heuristic` is `firings` / `sequences` it fires in.

The site is spliced and zero-ablated at every position, including special tokens, unless `exclude_special_tokens` says
that special tokens keep their activations. An undefined metric is -1, as in SAEBench.

Shape letters: B rows, E width, F latents.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor

from panscope import __version__
from panscope.config import Config
from panscope.evals.saebench import ratio
from panscope.storage.sealed import write_json

Columns = Mapping[str, Tensor]
"""Columns [F]: those of latents.parquet, and the three others used by `DETAILS` and `_densities`."""

CATEGORIES: dict[str, dict[str, str]] = {
    "model_behavior_preservation": {
        "kl_div_with_ablation": "saebench_kl_zero_ablated",
        "kl_div_with_sae": "saebench_kl",
    },
    "model_performance_preservation": {
        "ce_loss_with_ablation": "saebench_ce_zero_ablated",
        "ce_loss_with_sae": "saebench_ce_spliced",
        "ce_loss_without_sae": "saebench_ce_clean",
    },
    "reconstruction_quality": {
        "explained_variance": "saebench_explained_variance",
        "explained_variance_legacy": "saebench_explained_variance_legacy",
        "mse": "saebench_mse",
        "cossim": "cosine",
    },
    "shrinkage": {
        "l2_norm_in": "saebench_l2_norm_in",
        "l2_norm_out": "saebench_l2_norm_out",
        "l2_ratio": "saebench_l2_ratio",
        "relative_reconstruction_bias": "saebench_relative_reconstruction_bias",
    },
    "sparsity": {"l0": "l0", "l1": "l1"},
}
"""SAEBench's categories, each with a mapping from SAEBench's to Panscope's metric names."""

DETAILS = {
    "encoder_bias": "encoder_bias",
    "encoder_norm": "encoder_norm",
    "encoder_decoder_cosine_sim": "encoder_decoder_cosine",
    "max_decoder_cosine_sim": "decoder_cosine",
    "max_encoder_cosine_sim": "encoder_cosine",
}
"""SAEBench's per-latent metrics, by name, and the column that each is taken from."""

UNDEFINED = -1.0
DECIMALS = 10
"""Decimals that SAEBench keeps of per-latent metrics."""


class CoreAbout(Config):
    """The SAE, model, data and time of an evaluation."""

    release: str
    """SAEBench's `sae_lens_release_id`: the suite that the SAE belongs to."""
    coder: str
    """SAEBench's `sae_lens_id`: the SAE."""
    model: str
    """The language model's name."""
    dtype: str = "float32"
    """The language model's precision."""
    dataset: str
    """The text dataset."""
    context: int = pydantic.Field(gt=0)
    """Tokens per sequence."""
    batch: int = pydantic.Field(gt=0)
    """Sequences per batch."""
    exclude_special_tokens: bool = False
    """Whether special tokens kept their activations."""
    eval_id: str
    """A UUID of this evaluation."""
    milliseconds: int = pydantic.Field(ge=0, le=9_999_999_999_999)
    """Time of the evaluation, in milliseconds since 1970."""
    sae: dict[str, Any]
    """The SAE's configuration with SAELens' keys: `architecture`, `hook_name`, `d_in`, `d_sae` and so on."""


def core_output(numbers: Mapping[str, float | None], latents: Columns, about: CoreAbout) -> dict[str, Any]:
    """The whole document, from `numbers` by Panscope's metric names and the columns [F] of the `latents`."""
    columns = {name: torch.as_tensor(column).double() for name, column in latents.items()}
    columns |= _densities(columns, numbers)
    return {
        "eval_type_id": "core",
        "eval_config": _config(numbers, about),
        "eval_id": about.eval_id,
        "datetime_epoch_millis": about.milliseconds,
        "eval_result_metrics": _metrics(numbers, columns, about),
        "eval_result_details": _details(columns),
        "sae_bench_commit_hash": f"panscope {__version__}",
        "sae_lens_id": about.coder,
        "sae_lens_release_id": about.release,
        "sae_lens_version": None,
        "sae_cfg_dict": about.sae,
        "eval_result_unstructured": {},
    }


def core_file_name(about: CoreAbout) -> str:
    """SAEBench's name for the file of one SAE in the folder `core`."""
    return f"{about.release}_{about.coder}_eval_results.json".replace("/", "_")


def write_core(path: Path, document: dict[str, Any]) -> None:
    """Write a document of `core_output` atomically, without a checksum, which SAEBench's schema does not allow."""
    write_json(path, document)


def _config(numbers: Mapping[str, float | None], about: CoreAbout) -> dict[str, Any]:
    batches = math.ceil((numbers["sequences"] or 0) / about.batch)
    return {
        "model_name": about.model,
        "llm_dtype": about.dtype,
        "batch_size_prompts": about.batch,
        "n_eval_reconstruction_batches": batches,
        "n_eval_sparsity_variance_batches": batches,
        "dataset": about.dataset,
        "context_size": about.context,
        "compute_kl": True,
        "compute_ce_loss": True,
        "compute_l2_norms": True,
        "compute_sparsity_metrics": True,
        "compute_variance_metrics": True,
        "compute_featurewise_density_statistics": True,
        "compute_featurewise_weight_based_metrics": True,
        "exclude_special_tokens_from_reconstruction": about.exclude_special_tokens,
        "verbose": False,
    }


def _metrics(numbers: Mapping[str, float | None], columns: Columns, about: CoreAbout) -> dict[str, Any]:
    """The metrics of all categories."""
    metrics = {
        category: {name: _defined(numbers[source]) for name, source in names.items()}
        for category, names in CATEGORIES.items()
    }
    kl = [numbers["saebench_kl_zero_ablated"], numbers["saebench_kl"], 0.0]
    ce = [numbers["saebench_ce_zero_ablated"], numbers["saebench_ce_spliced"], numbers["saebench_ce_clean"]]
    metrics["model_behavior_preservation"]["kl_div_score"] = _score(*kl)
    metrics["model_performance_preservation"]["ce_loss_score"] = _score(*ce)
    tokens = int(numbers["sequences"] or 0) * about.context
    counts = {"total_tokens_eval_reconstruction": tokens, "total_tokens_eval_sparsity_variance": tokens}
    return {**metrics, "token_stats": counts, "misc_metrics": _misc(columns)}


def _score(ablated: float | None, spliced: float | None, clean: float | None) -> float:
    """The share of the ablation's loss increase that the SAE recovers: 1 for all of it."""
    if ablated is None or spliced is None or clean is None:
        return UNDEFINED
    return _defined(ratio(ablated - spliced, ablated - clean))


def _densities(columns: Columns, numbers: Mapping[str, float | None]) -> dict[str, Tensor]:
    """[F] the firing rate of each latent over all rows, and its firings per sequence in which it fires."""
    return {
        "feature_density": columns["firings"] / (numbers["tokens"] or math.nan),
        "consistent_activation_heuristic": columns["firings"] / columns["sequences"],
    }


def _misc(columns: Columns) -> dict[str, float]:
    density = columns["feature_density"]
    misc = {
        "average_max_encoder_cosine_sim": columns["encoder_cosine"].mean(),
        "average_max_decoder_cosine_sim": columns["decoder_cosine"].mean(),
        "frac_alive": (density > 0).double().mean(),
    }
    for percent in (1, 10):
        frequent = density > percent / 100
        misc[f"freq_over_{percent}_percent"] = frequent.double().mean()
        share = density[frequent].sum() / density.sum() if density.sum() > 0 else torch.tensor(0.0)
        misc[f"normalized_freq_over_{percent}_percent"] = share
    return {name: _defined(float(value)) for name, value in misc.items()}


def _details(columns: Columns) -> list[dict[str, float | int]]:
    """One entry per latent."""
    sources = {name: name for name in ("feature_density", "consistent_activation_heuristic")} | DETAILS
    lists = [[round(_defined(x), DECIMALS) for x in columns[source].tolist()] for source in sources.values()]
    return [
        {"index": index} | dict(zip(sources, values, strict=True))
        for index, values in enumerate(zip(*lists, strict=True))
    ]


def _defined(number: float | None) -> float:
    return UNDEFINED if number is None or not math.isfinite(number) else float(number)
