"""`ce_*`, `delta_loss`, `loss_recovered` and `predicted_tokens`: what the coder costs the language model, in nats.

Each ce is the mean of -log p(next token) over predicted tokens: the places whose next token is text, so BOS, EOS and
padding are never predicted. Replacements are made at content tokens only.

- ce_clean: the model as it is. ce_spliced: the coder's reconstruction at its output site.
- ce_zero_ablated: 0 at that site. ce_mean_ablated: the site's mean over the evaluation set there.
- delta_loss = ce_spliced - ce_clean (Gemma Scope section 4.1, delta LM loss; Llama Scope section 4.1).
- loss_recovered = (ce_zero_ablated - ce_spliced) / (ce_zero_ablated - ce_clean) (Bricken et al. 2023): 1 for a perfect
  coder, 0 for one no better than zeros. Zeroing a residual stream hurts far more than zeroing a sublayer, so it does
  not compare sites; delta_loss with both ablations beside it does (Gemma Scope, footnote 7).
"""

from panscope.evals.metrics.base import Additive, Number, Sums, count, ratio
from panscope.evals.outcome import Outcome

LOSSES = ("ce_clean", "ce_spliced", "ce_zero_ablated", "ce_mean_ablated")


class Losses(Additive):
    """Cross-entropies of the model, untouched and altered."""

    def measure(self, outcome: Outcome) -> Sums:
        """Summed losses and predicted tokens."""
        return {name: getattr(outcome, name).sum() for name in LOSSES} | {"predicted": count(outcome.ce_clean)}

    def summary(self, sums: Sums) -> dict[str, Number]:
        """The four means and what follows from them; NaN for loss_recovered where zeroing the site costs nothing."""
        ce = {name: ratio(sums[name], sums["predicted"]) for name in LOSSES}
        recovered = ce["ce_zero_ablated"] - ce["ce_spliced"]
        return {
            **ce,
            "delta_loss": ce["ce_spliced"] - ce["ce_clean"],
            "loss_recovered": ratio(recovered, ce["ce_zero_ablated"] - ce["ce_clean"]),
            "predicted_tokens": int(sums["predicted"]),
        }
