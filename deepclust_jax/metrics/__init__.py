"""Scores of a clustering: against labels (`external`), without (`internal`), jittable (`jittable`);
and of rows that were made (`generated`).

Host functions take arrays of any kind and return floats; names that end in `_jax` can be jitted and
vmapped over seeds. All are functions of labels and embeddings: none ever sees a model or a batch.
"""

from deepclust_jax.metrics.external import (
    accuracy,
    align,
    ami,
    ari,
    completeness,
    contingency,
    external_scores,
    homogeneity,
    nmi,
    purity,
    stability,
)
from deepclust_jax.metrics.generated import fidelity, frechet, memorised
from deepclust_jax.metrics.internal import (
    calinski_harabasz,
    cluster_sizes,
    davies_bouldin,
    dunn,
    internal_scores,
    silhouette,
)
from deepclust_jax.metrics.jittable import accuracy_jax, ari_jax, contingency_jax, nmi_jax

__all__ = [
    "accuracy",
    "accuracy_jax",
    "align",
    "ami",
    "ari",
    "ari_jax",
    "calinski_harabasz",
    "cluster_sizes",
    "completeness",
    "contingency",
    "contingency_jax",
    "davies_bouldin",
    "dunn",
    "external_scores",
    "fidelity",
    "frechet",
    "homogeneity",
    "internal_scores",
    "memorised",
    "nmi",
    "nmi_jax",
    "purity",
    "silhouette",
    "stability",
]
