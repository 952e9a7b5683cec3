"""The HTML page in which the latents of runs are explored."""
