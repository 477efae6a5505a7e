r"""Train a generator and a discriminator, look at what is made, and cluster what is told.

    python scripts/train_gan.py                                       # digits
    python scripts/train_gan.py --data mnist --method info_gan --augment affine --seeds 1
    python scripts/train_gan.py --data usps --network conv
    python scripts/train_gan.py --data grid_25 --hidden 128 128 128 --penalty 0.01 \
        --learning-rate 3e-3 --batch-size 512 --epochs 300

That is `train_deep_kmeans.py --method gan`, or info_gan, cluster_gan or bi_gan, with all its
options, its run directory and its report. After the scores come how the made rows compare with the
real ones. `made.png` shows some, `walk.png` what lies between them, and `film.gif` how they became.
"""

import sys

from deepclust_jax import command


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    from train_deep_kmeans import main_of

    return main_of(("gan", "info_gan", "cluster_gan", "bi_gan"), args)


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
