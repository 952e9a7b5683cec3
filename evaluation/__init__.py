"""How good a run is: estimators of log p(x), what latents carry, distances of samples."""

STARTS = 3  # of fits of further modes of p(z|x), unless --num_starts says otherwise
