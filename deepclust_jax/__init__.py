"""Deep clustering in JAX: pure functions from raw data to clusters with a mean and a spread."""

from importlib import metadata

__version__ = "0.1.0"

# An installer leaves a release alone that is already there, so it is refused here as well.
BROKEN_JAX = {
    "0.10.2": "computes wrong numbers on CPU under vmap beyond 32,768 rows (jax#39103)",
    "0.11.0": "scatters hundreds of times too slowly on GPU (xla#46225)",
    "0.11.1": "writes into loops in quadratic time on CPU (QuantEcon.py#622)",
}


def check_jax_version(versions: dict[str, str]) -> None:
    """Refuse releases of jax and jaxlib that are known to be broken.

    Args:
        versions: package name -> installed version, such as {"jax": "0.12.0.1"}.

    Raises:
        ImportError: one of the versions is in `BROKEN_JAX`.
    """
    for package, version in versions.items():
        if version in BROKEN_JAX:
            raise ImportError(
                f"expected a working JAX, found {package} {version}, which {BROKEN_JAX[version]}; "
                'run: pip install "jax>=0.10.0,!=0.10.2,!=0.11.0,!=0.11.1"'
            )


check_jax_version({package: metadata.version(package) for package in ("jax", "jaxlib")})
