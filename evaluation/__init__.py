"""How good a run is: estimators of log p(x), what latents carry, distances of samples."""
