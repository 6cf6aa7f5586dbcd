"""What is said while records are made."""

from m4.run.progress import Building


def test_a_line_now_and_then_and_one_at_the_end_of_every_split(capsys):
    now = iter([0.0, 0.1, 0.5, 3.0, 3.1, 3.2, 3.3, 3.4])
    say = Building("tables", clock=lambda: next(now))
    for split, rows in (
        ("train", 200), ("train", 400), ("train", 600), ("train", 800), ("train", 800),
        ("val", 200), ("val", 230),
    ):  # fmt: skip
        say(split, rows)
    assert capsys.readouterr().out.splitlines() == [
        "building tables train: 200 records",
        "building tables train: 600 records, 207/s",
        "building tables train: 800 records, 258/s",
        "building tables val: 200 records",
        "building tables val: 230 records",
    ]
