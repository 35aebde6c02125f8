"""Definitions of the quantities in a report, for readers who have not read the papers."""

WORDS = {
    "coder": (
        "a sparse autoencoder or a variant of it (transcoder, crosscoder): it represents an activation vector of the "
        "language model as a sparse combination of learned directions"
    ),
    "latent": "one of a coder's learned directions, with its activation on each token; the width counts the latents",
    "sparsity": "the setting that controls L0: K latents per token, the penalty coefficient λ, or a target L0",
    "L0": "mean number of active latents per token; lower is sparser",
    "FVU": (
        "fraction of variance unexplained: squared reconstruction error divided by the variance of the activations; "
        "0 is perfect, 1 is no better than the mean activation"
    ),
    "explained variance": "1 - FVU",
    "delta loss": (
        "increase of the language model's next-token loss, in nats, when the reconstruction replaces the activations"
    ),
    "loss recovered": "the same on a scale from 0 % (the site is set to zero) to 100 % (the model is unchanged)",
    "KL": "KL divergence, in nats, between the model's predictions with the original and with the replaced activations",
    "MSE": "mean squared error per entry of the activation vector; depends on its scale, so compare within one site",
    "dead": "share of latents that never fired on the evaluated text",
    "dense": "share of latents that fired on more than a tenth of the tokens",
    "95 % confidence interval": (
        "estimated from the variation between sequences: about 95 % of such intervals contain the value that unlimited "
        "text of the same kind would give; variation between training seeds is not included"
    ),
}
