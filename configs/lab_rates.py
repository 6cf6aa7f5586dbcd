"""Rates of estimation of four gates, exact and with an expert too many, and each on others' data.

    python -m m4.lab theory --config=configs/lab_rates.py --out=runs/rates

`:tiny` is for tests; `:exact` has only softmax and Laplace with as many experts as the truth: -1/2.
"""

VARIANTS = ("tiny", "exact")


def get_config(variant=""):
    if variant == "tiny":
        return dict(sizes=(300, 1000), repeats=2, extra=(0,), gates=("softmax", "laplace"))
    if variant == "exact":
        return dict(extra=(0,), cross=False, gates=("softmax", "laplace"))
    return {}
