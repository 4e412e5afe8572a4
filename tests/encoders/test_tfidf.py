import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from anyo_rl.encoders.tfidf import tfidf_vectors

TITLES = ["Oak lamp 3", "oak lamp 4", "glass mug", "glass glass teapot", "…", "steel mug", "oak shade"]


def test_cosines_are_those_of_scikit_learn():
    whole = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(TITLES)
    vectors = tfidf_vectors(TITLES)
    np.testing.assert_allclose(vectors @ vectors.T, (whole @ whole.T).toarray(), atol=1e-6)
    assert not vectors[4].any()


def test_fewer_dimensions_keep_what_matters_and_repeat():
    generator = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(40)])
    texts = [" ".join(generator.choice(words[10 * (i % 4) : 10 * (i % 4) + 10], 4)) for i in range(60)]
    vectors = tfidf_vectors(texts, dim=8)
    assert vectors.shape == (60, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    cosines = vectors @ vectors.T
    alike = np.equal.outer(np.arange(60) % 4, np.arange(60) % 4)
    assert cosines[alike].mean() > 0.3 > 0.05 > abs(cosines[~alike].mean())
    assert vectors.tobytes() == tfidf_vectors(texts, dim=8).tobytes()


def test_no_text_is_refused():
    with pytest.raises(ValueError, match="found no text"):
        tfidf_vectors([])
