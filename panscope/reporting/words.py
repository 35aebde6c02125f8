"""What the quantities in a report mean, for who has not read the papers."""

WORDS = {
    "coder": "a sparse autoencoder: it writes each activation vector of the language model as a sum of few directions",
    "latent": "one of a coder's directions; the width is how many it has",
    "L0": "how many latents are active on a token; lower is sparser",
    "FVU": "fraction of variance unexplained: what the reconstruction misses; 1 is as much as the mean misses",
    "explained variance": "1 - FVU",
    "delta loss": "how much worse the language model predicts the next token with the reconstruction in place, in nats",
    "loss recovered": "the same between setting the site to zero (0 %) and leaving it alone (100 %)",
    "KL": "how far the model's predictions move when the reconstruction stands in place, in nats",
    "MSE": "squared error per entry of the vector; it grows with the activations, so compare within one site",
    "dead": "share of latents that never fired on the evaluated text",
    "dense": "share of latents that fired on more than a tenth of the tokens",
    "95 %": "the interval that holds the number in 95 of 100 drawings of as much text",
}
