"""What the authors of the paper recorded with their own code, for figures that set it beside ours."""

from __future__ import annotations

# What the authors recorded with their code at its own size (20 dims, 41 points, 12 layers; Choi et al., ICLR 2025,
# arXiv 2503.09032): one run an arm. Squared errors after 0, 10, 20 and 40 pairs; the cosine is their partial derivative.
# Their formula of the true gradient holds for the polynomial only, so there is a cosine for it alone.
RECORDED_PAIRS = [0, 10, 20, 40]
RECORDED = {
    "polynomial": {
        "errors": {"cft": [0.33, 0.29, 0.32, 0.63], "cpt": [1110, 937, 858, 771], "neg": [898, 944, 906, 912]},
        "partial": {"cft": 0.984, "cpt": 0.322, "neg": 0.182},
    },
    "sumdot": {
        "excess": {"cft": 1.02, "cpt": 2.03, "neg": 2.12},  # training loss in units of pre-training's best error
        "errors": {
            "cft": [20.8, 11.1, 0.84, 0.029],
            "cpt": [40.8, 19.8, 0.79, 0.020],
            "neg": [40.8, 20.2, 3.05, 0.246],
        },
    },
    "relu": {
        "errors": {"cft": [0.0, 0.0, 0.0, 0.0], "cpt": [6.97, 4.99, 2.78, 0.302], "neg": [7.10, 4.75, 2.69, 0.219]},
    },
}
