"""Cluster sounds: spoken words by what is said, whoever says it.

    python scripts/train_audio.py                                        # fsdd, minutes on a laptop
    python scripts/train_audio.py --method next_frame                    # another pretext task
    python scripts/train_audio.py --data my_wavs/ --n-clusters 12 --nuisance speakers.txt

That is `train_deep_kmeans.py` with all its options, where those that are not given are `--data fsdd
--scaling speech`, and contrastive features of words as other voices may say them (`--method
contrastive --augment speech`). Below the scores by classes come those by speakers, which the
clusters should not follow.
"""

import argparse
import sys
from pathlib import Path

from deepclust_jax import command, config


def main(args: list[str] | None = None) -> int:
    """Run the script; 0 if all went well, else 2 after one line on standard error."""
    from train_deep_kmeans import main as train

    args = sys.argv[1:] if args is None else args
    given = {arg.split("=")[0] for arg in args}
    if "--resume" in given:  # a run, whose options are all there
        return train(args)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--data")
    found = finder.parse_known_args(args)[0]
    file = found.config
    if found.data is not None and config.run_of(found.data) is not None:
        return train(args)  # of codes, which are no sounds
    if file is not None:
        try:
            given |= {f"--{name}" for name in config.read(file)}
        except config.ConfigError:
            return train(args)  # which says so
    ours = {"--data": "fsdd", "--scaling": "speech"}
    if "--method" not in given:
        ours |= {"--method": "contrastive", "--augment": "speech"}
    return train(
        [word for flag, v in ours.items() if flag not in given for word in (flag, v)] + args
    )


if __name__ == "__main__":
    sys.exit(command.to_reader(main))
