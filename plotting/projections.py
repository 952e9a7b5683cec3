"""Latents of more than two dimensions in the plane."""


def pca(points, reference):
    """Points (N, D) on the first two principal components of reference points (M, D): (N, 2), axis names, caption."""
    from sklearn.decomposition import PCA

    fitted = PCA(2).fit(reference)
    shares = 100 * fitted.explained_variance_ratio_
    names = [f"principal component {number} ({share:.0f} % of variance)" for number, share in enumerate(shares, 1)]
    return fitted.transform(points), names, "PCA of the posterior means"


def tsne(points, reference):
    """Points (N, D) embedded by t-SNE, all of them jointly: (N, 2), axis names, caption. Slow.

    More points than reference points (M, D) mean that pseudo-inputs come after these.
    """
    from sklearn.manifold import TSNE

    fitted = TSNE(2, perplexity=min(30, (len(points) - 1) / 3), random_state=0)
    caption = "test images and pseudo-inputs, embedded jointly" if len(points) > len(reference) else ""
    return fitted.fit_transform(points), ("t-SNE 1", "t-SNE 2"), caption


PROJECTIONS = {"pca": pca, "tsne": tsne}
