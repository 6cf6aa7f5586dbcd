"""Every table of scores in docs/results.md, from raw files: `make results`.

    python docs/site/tables.py                     # all of them, into runs/results
    python docs/site/tables.py eicu-mortality      # one
    python docs/site/tables.py --list              # the commands, and nothing is run

Each is a `--mode=sweep`: runs that are finished are not run again, and several tables of the same
runs share them. `runs/results/<name>.md` is what stands in the page: scores with the deviation and
interval over seeds and patients, paired differences, hours and commit. A table whose runs fail, for
want of raw files say, is left out, named, and ends the command with code 1.
"""

import shutil
import subprocess
import sys
from pathlib import Path

METHODS = ("fusemoe", "flexmoe", "flexcare", "m3h", "m4oe")
P12 = ",".join(f"configs/{method}_physionet2012.py" for method in METHODS)
EICU = ",".join(f"configs/{method}_eicu_meds.py" for method in METHODS)
P12_SET_B = ("physionet2012", f"--config={P12}", "--seeds=0,1,2")
P12_SET_A = ("physionet2012-set-a", f"--config={P12}", "--seeds=0", "--how=crossval")
P12_SET_A += ("--config.data.options.num_folds=5",)
SUPPORT2 = ("support2", "--config=configs/m3h_support2.py", "--seeds=0", "--how=crossval")
EICU_FOLDS = ("eicu", f"--config={EICU}", "--seeds=0", "--how=crossval")
SYNTHETIC = ("synthetic", "--config=configs/fusemoe_mimic.py:synthetic", "--seeds=0")
JUDGED = "auroc,auprc,brier,calibration_error"

# Table -> (folder of its runs and their flags, task, metrics).
TABLES = {
    "physionet2012-death": (P12_SET_B, "death", JUDGED),
    "physionet2012-los_over_7d": (P12_SET_B, "los_over_7d", "auroc,auprc,brier"),
    "physionet2012-los": (P12_SET_B, "los", "mae,r2"),
    "physionet2012-sofa7": (P12_SET_B, "sofa7", "auroc"),
    "physionet2012-set-a-death": (P12_SET_A, "death", JUDGED),
    "support2-death": (SUPPORT2, "hospital_death", JUDGED),
    "support2-survival": (SUPPORT2, "survival", "c_index"),
    "support2-function": (SUPPORT2, "function", "auroc_macro"),
    "support2-los": (SUPPORT2, "los", "mae"),
    "support2-charges": (SUPPORT2, "charges", "mae"),
    "eicu-mortality": (EICU_FOLDS, "hospital_mortality", JUDGED),
    "eicu-stay": (EICU_FOLDS, "los_over_72h", JUDGED),
    "synthetic-death": (SYNTHETIC, "ihm48", "auroc,auprc"),
    "synthetic-los": (SYNTHETIC, "los", "mae"),
}


def command(name: str, out: Path, *more: str) -> list[str]:
    """The arguments of `m4.main` that make a table."""
    (folder, *flags), task, metrics = TABLES[name]
    given = [f"--workdir={out / folder}", f"--task={task}", f"--metrics={metrics}"]
    return ["--mode=sweep", *flags, *given, *more]


def main(args: list[str]) -> int:
    """Makes the tables that are named, or all."""
    out, listed = Path("runs/results"), "--list" in args
    names = [arg for arg in args if not arg.startswith("--")]
    for arg in args:
        out = Path(arg.removeprefix("--out=")) if arg.startswith("--out=") else out
    if unknown := [name for name in names if name not in TABLES]:
        print(f"{unknown[0]}: no such table; there are {', '.join(TABLES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or TABLES:
        told = [sys.executable, "-m", "m4.main", *command(name, out)]
        print(f"{name}: python {' '.join(told[1:])}", flush=True)
        if listed:
            continue
        if code := subprocess.run(told, check=False).returncode:
            failed.append(name)
            if code == 75:  # stopped: the same command goes on
                return code
            continue
        shutil.copyfile(out / TABLES[name][0][0] / "table.md", out / f"{name}.md")
    print(*(f"{name}: not made" for name in failed), sep="\n", end="\n" if failed else "")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
