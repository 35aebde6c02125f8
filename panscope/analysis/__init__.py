"""Looking into a language model through coders: load any, read and change latents while it runs, attribute."""
