"""`ce_*`, `delta_loss` and `loss_recovered`: what the coder costs the language model, in nats.

Each ce is the mean of -log p(next token) over predicted tokens: the places whose next token is text, so BOS, EOS and
padding are never predicted. Replacements are made at content tokens only, unless asked otherwise (`evals.question`).

- ce_clean: the model as it is. ce_spliced: the coder's reconstruction at its output site.
- ce_zero_ablated: 0 at that site. ce_mean_ablated: the site's mean over the evaluation set there.
- delta_loss = ce_spliced - ce_clean (Gemma Scope section 4.1, delta LM loss; Llama Scope section 4.1).
- loss_recovered = (ce_zero_ablated - ce_spliced) / (ce_zero_ablated - ce_clean) (Bricken et al. 2023): 1 for a perfect
  coder, 0 for one no better than zeros. Zeroing a residual stream hurts far more than zeroing a sublayer, so it does
  not compare sites; delta_loss with both ablations beside it does (Gemma Scope, footnote 7).
"""

from panscope.evals.metrics.base import Metric, Numbers, Sums, ratio


def _numbers(sums: Sums) -> Numbers:
    gained = sums["ce_zero_ablated"] - sums["ce_spliced"]
    return {name: ratio(sums[name], sums["count"]) for name in _QUANTITIES} | {
        "delta_loss": ratio(sums["ce_spliced"] - sums["ce_clean"], sums["count"]),
        "loss_recovered": ratio(gained, sums["ce_zero_ablated"] - sums["ce_clean"]),
    }


_QUANTITIES = {
    "ce_clean": lambda o: o.ce_clean,
    "ce_spliced": lambda o: o.spliced.ce,
    "ce_zero_ablated": lambda o: o.zero_ablated.ce,
    "ce_mean_ablated": lambda o: o.mean_ablated.ce,
}
LOSSES = Metric("predictions", _QUANTITIES, _numbers, by_position=True)
