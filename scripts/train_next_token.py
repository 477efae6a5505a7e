"""Train a network to tell how texts go on, and cluster them by what they are about.

    python scripts/train_next_token.py --data bbc_news                   # some minutes
    python scripts/train_next_token.py --data ag_news --network transformer --hidden 128 128

That is `train_deep_kmeans.py --method next_token`, with all its options, its run directory and its
report; after the scores come the perplexity, and in samples.md the words of every cluster and a
text that the network wrote for it.
"""

import sys

from deepclust_jax import command


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    from train_deep_kmeans import main_of

    return main_of(("next_token",), args)


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
