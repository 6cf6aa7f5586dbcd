"""Rates of estimation of four gates, exact and with an expert too many, and each on others' data.

    python -m m4.lab theory --config=configs/lab_rates.py --out=runs/rates

`:tiny` is for tests; `:exact` has only softmax and Laplace with as many experts as the truth: -1/2.
`:figure3` is the question of FuseMoE's Figure 3, Laplace gates with as many experts as the truth
and with one more, at ten sizes; its truth, repeats and powers are ours, not the paper's.
"""

VARIANTS = ("tiny", "exact", "figure3")


def get_config(variant=""):
    if variant == "tiny":
        return dict(sizes=(300, 1000), repeats=2, extra=(0,), gates=("softmax", "laplace"))
    if variant == "exact":
        return dict(extra=(0,), cross=False, gates=("softmax", "laplace"))
    if variant == "figure3":
        sizes = tuple(round(10 ** (3 + 2 * i / 9)) for i in range(10))
        return dict(gates=("laplace",), sizes=sizes, repeats=20, cross=False)
    return {}
