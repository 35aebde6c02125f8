"""The call of umap, in a module of its own because umap takes seconds to import and compile.

Shape letters: P points, D width of a vector.
"""

import warnings

import numpy as np

from panscope.extras import optional


def layout(unit: np.ndarray, *, neighbours: int, seed: int) -> np.ndarray:
    """[P, D] unit vectors -> [P, 2] float32, on one thread, as more would make the result non-deterministic."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensorflow not installed", category=ImportWarning)
        umap = optional("umap", extra="geometry")
    reducer = umap.UMAP(n_components=2, n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1)
    return np.asarray(reducer.fit_transform(unit), dtype=np.float32)
