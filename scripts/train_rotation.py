"""Train a network to tell how an image was turned, and cluster what it has learnt to see.

    python scripts/train_rotation.py                                     # digits, some minutes
    python scripts/train_rotation.py --data fashion_mnist --held-out 10000 --seeds 5

That is `train_deep_kmeans.py --method rotation`, with all its options, its run directory and its
report; after the scores come how often turns are found, by class, and the clusters of every block.
"""

import sys

from deepclust_jax import command


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    from train_deep_kmeans import main_of

    return main_of(("rotation",), args)


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
