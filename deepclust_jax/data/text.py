"""Features of documents: TF-IDF, then latent semantic analysis (Deerwester et al., 1990)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepclust_jax.data.errors import DataError

DIMENSIONS = 100
MAX_TERMS = 20_000
FEW_DOCUMENTS = 100  # below this, rare and frequent terms are kept


def fit(texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Vocabulary (settings) and idf [terms], components [dimensions, terms] (arrays) of documents.

    Terms in fewer than 2 or in more than half of the documents are dropped (kept if there are
    fewer than 100 documents), English stop words always. Raises DataError if no term is left.
    """
    from sklearn.decomposition import TruncatedSVD

    few = len(texts) < FEW_DOCUMENTS
    vectoriser = _vectoriser(
        min_df=1 if few else 2, max_df=1.0 if few else 0.5, max_features=MAX_TERMS
    )
    try:
        counts = vectoriser.fit_transform(texts)
    except ValueError:
        raise DataError(
            f"no word is left of {len(texts)} documents after dropping stop words and rare and "
            "frequent terms; expected English prose, one document per row"
        ) from None
    if counts.shape[1] < 2:
        raise DataError(
            f"expected two words or more in all documents, found one in {len(texts)} after "
            "dropping stop words and rare and frequent terms"
        )
    dimensions = max(1, min(DIMENSIONS, len(texts) - 1, counts.shape[1]))
    svd = TruncatedSVD(dimensions, random_state=0).fit(counts)
    terms = [str(term) for term in vectoriser.get_feature_names_out()]
    return {"terms": terms}, {"idf": vectoriser.idf_, "components": svd.components_}


def apply(
    settings: dict[str, Any], arrays: dict[str, np.ndarray], texts: Sequence[str]
) -> np.ndarray:
    """Document features. -> float32 [n, dimensions], rows of length sqrt(dimensions).

    A document without a known term becomes a row of zeros.
    """
    vectoriser = _vectoriser(vocabulary=settings["terms"])
    vectoriser.idf_ = arrays["idf"]
    z = vectoriser.transform(texts) @ arrays["components"].T
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    # sqrt(dimensions): a feature's mean square is then about 1, as networks expect
    return np.float32(z / np.where(norm > 0, norm, 1.0) * np.sqrt(z.shape[1]))


def _vectoriser(**options):
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, stop_words="english", **options)
