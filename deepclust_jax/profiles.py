"""The numbers of each method: what an option that is not given stands for, by profile.

They are the same for all data sets; an option that a method does not have is absent. Sources of the
paper profile: autoencoder, DEC-keras (its rate of 1 is 0.067 here, see algorithms/autoencoder.py);
the others, their papers, dec and idec for the 20,000 steps that 73 epochs are on MNIST. Pairs have
no paper with this network: their epochs are of the order of SimCLR's and SCAN's; nor has
next_token, whose network is larger there. The practical autoencoder has more than half of its
training in epochs times rate: 60 times 0.2, where the paper's has 300 times 0.067.
"""

from typing import Any

NETWORK = {"hidden": (500, 500, 2000), "embed_dim": 10}
AUTOENCODER = {
    **NETWORK, "epochs": 60, "learning_rate": 0.2, "decay": 0.2, "metric": "adaptive"
}  # fmt: skip
RESNET_18 = (64, 128, 256, 512)
_PAIRS = {"hidden": (512, 512), "embed_dim": 64, "learning_rate": 1e-3, "decay": 1.0}
_BLOCKS = {
    "network": "conv", "hidden": (16, 32, 64), "embed_dim": 32, "learning_rate": 2e-3, "decay": 1.0
}  # fmt: skip
# Of --augment photo: convolutions, and the rate of the contrastive phase.
PHOTO = {
    "contrastive": {"network": "conv", "learning_rate": 2e-3},
    "info_max": {"network": "conv", "pretrain_learning_rate": 2e-3},
}
GAMES = ("gan", "info_gan", "cluster_gan", "bi_gan")  # of generator and discriminator
LIPSCHITZ = 10.0  # of --objective wasserstein, in every profile (Gulrajani et al. 2017)
_GAN = {
    "hidden": (256, 256), "embed_dim": 32, "epochs": 50, "learning_rate": 1e-3, "decay": 1.0,
    "objective": "logistic",
}  # fmt: skip
_CODED_GAN = {**_GAN, "penalty": 1.0, "prior": None, "labelled_by": "code"}
_NEXT_TOKEN = {
    "network": "gru", "hidden": (128,), "embed_dim": 64, "batch_size": 32,
    "learning_rate": 3e-3, "decay": 1.0,
}  # fmt: skip
_NEXT_FRAME = {
    "network": "gru", "hidden": (128,), "embed_dim": 32, "learning_rate": 1e-3, "decay": 1.0,
}  # fmt: skip
_PRETRAINED_PAIRS = {
    "pretrain_epochs": 40,
    "pretrain_learning_rate": _PAIRS["learning_rate"],
    "objective": "information",
}
_PRETRAINED = {  # the same, so that one autoencoder serves all methods
    **NETWORK,
    "pretrain_epochs": AUTOENCODER["epochs"],
    "pretrain_learning_rate": AUTOENCODER["learning_rate"],
    "decay": AUTOENCODER["decay"],
    "metric": AUTOENCODER["metric"],
}
_PRETRAINED_PAPER = {
    **NETWORK,
    "pretrain_epochs": 50,
    "pretrain_learning_rate": 0.067,
    "decay": 0.0,
    "metric": "euclidean",
}
DKM_ANNEALED = {"epochs": 200, "weight": 0.1, "alpha": 0.1}  # with --pretrain-epochs 0
PROFILES: dict[str, dict[str, dict[str, Any]]] = {
    "practical": {
        "autoencoder": AUTOENCODER,
        "dcn": {**_PRETRAINED, "epochs": 20, "learning_rate": 1e-4, "weight": 2.0},
        "dkm": {**_PRETRAINED, "epochs": 20, "learning_rate": 1e-4, "weight": 1.0, "alpha": 1e3},
        "dec": {**_PRETRAINED, "epochs": 20, "learning_rate": 1e-4},
        "idec": {**_PRETRAINED, "epochs": 20, "learning_rate": 1e-4, "weight": 1.5},
        "vade": {**_PRETRAINED, "epochs": 20, "learning_rate": 1e-3, "likelihood": "gaussian"},
        "n2d": {**_PRETRAINED, "epochs": 0, "learning_rate": AUTOENCODER["learning_rate"]},
        "contrastive": {**_PAIRS, "epochs": 40},
        "info_max": {**_PAIRS, **_PRETRAINED_PAIRS, "epochs": 40},
        "rotation": {**_BLOCKS, "epochs": 5},
        "mmdc": {**_BLOCKS, "epochs": 20},
        "deep_cluster": {**_BLOCKS, "learning_rate": 1e-3, "epochs": 20},
        "next_token": {**_NEXT_TOKEN, "epochs": 7},
        "next_frame": {**_NEXT_FRAME, "epochs": 20},
        "cross_modal": {**_PAIRS, "epochs": 20},
        "gan": {**_GAN, "penalty": 10.0},
        "info_gan": _CODED_GAN,
        "cluster_gan": _CODED_GAN,
        "bi_gan": _CODED_GAN,
    },
    "paper": {
        "autoencoder": {
            **NETWORK,
            "epochs": 300,
            "learning_rate": 0.067,
            "decay": 0.0,
            "metric": "euclidean",
        },
        "dcn": {**_PRETRAINED_PAPER, "epochs": 50, "learning_rate": 1e-3, "weight": 0.05},
        "dkm": {
            **_PRETRAINED_PAPER,
            "epochs": 100,
            "learning_rate": 1e-3,
            "weight": 1.0,
            "alpha": 1e3,
        },
        "dec": {**_PRETRAINED_PAPER, "epochs": 73, "learning_rate": 0.01},
        "idec": {**_PRETRAINED_PAPER, "epochs": 73, "learning_rate": 1e-3, "weight": 1.5},
        "vade": {
            **_PRETRAINED_PAPER,
            "epochs": 3000,
            "learning_rate": 2e-3,
            "likelihood": "bernoulli",
        },
        "n2d": {
            **_PRETRAINED_PAPER,
            "pretrain_epochs": 1000,
            "epochs": 0,
            "learning_rate": 0.067,
        },
        "contrastive": {**_PAIRS, "epochs": 1000},
        "info_max": {**_PAIRS, **_PRETRAINED_PAIRS, "pretrain_epochs": 500, "epochs": 100},
        "rotation": {**_BLOCKS, "hidden": (96, 192, 192, 192), "epochs": 200},
        "mmdc": {**_BLOCKS, "hidden": (96, 192, 192, 192), "epochs": 400},
        "deep_cluster": {
            **_BLOCKS,
            "hidden": (96, 192, 192, 192),
            "embed_dim": 256,
            "epochs": 200,
        },
        "next_token": {**_NEXT_TOKEN, "hidden": (512, 512), "epochs": 50},
        "next_frame": {**_NEXT_FRAME, "hidden": (512, 512, 512), "epochs": 100},
        "cross_modal": {**_PAIRS, "epochs": 200},
        "gan": {**_GAN, "hidden": (1200, 1200), "epochs": 500, "penalty": 0.0},
        "info_gan": {**_CODED_GAN, "hidden": (1024, 1024), "epochs": 500, "penalty": 0.0},
        "cluster_gan": {
            **_CODED_GAN,
            "hidden": (1024, 1024),
            "epochs": 500,
            "objective": "wasserstein",
            "penalty": LIPSCHITZ,
            "learning_rate": 1e-4,
        },  # fmt: skip
        "bi_gan": {**_CODED_GAN, "hidden": (1024, 1024), "epochs": 400, "penalty": 0.0},
    },
}

# Few rows make short epochs: where the number of epochs is left open, the practical profile takes
# at least so many steps, just below those of 60 and 20 epochs on the 9,298 rows of USPS. On digits
# 60 epochs are 480 steps, and its clusters were worse than those of k-means on the rows.
# Contrastive features of the same rows still gain from 40 epochs to 100, and those of photographs,
# which tell each from all others, from 40 epochs on 10,000 rows to 120.
LEAST_STEPS = {
    "autoencoder": 2000, "joint": 700, "contrastive": 3700, "photo": 8000, "rotation": 1000,
    "mmdc": 1000, "deep_cluster": 1000, "next_token": 1000, "next_frame": 1000, "cross_modal": 1000,
    **dict.fromkeys(GAMES, 3000),
}  # fmt: skip

OBJECTIVES = {
    "info_max": ("information", "agreement", "invariance"),
    **dict.fromkeys(GAMES, ("logistic", "hinge", "wasserstein")),
}
