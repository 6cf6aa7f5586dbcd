"""What checks have found: a line each, and a document.

    {schema, alarms, stopped, findings: [{check, of, verdict, says, seconds}], sha256}

`verdict` is 'ok', 'ALARM' or 'left out', `says` what was found, a figure, or why it was left out.
`stopped` is the error that ended the audit before its last check, '' if none did.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from m4 import atomic, seal
from m4.audit.probe import Defect, LeftOut
from m4.errors import UserError, place, printable, shortage

SCHEMA = 1
WIDTHS = (9, 34, 26)  # of verdict, check, what was asked
Verdict = Literal["ok", "ALARM", "left out"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One check of one thing."""

    check: str
    of: str  # what was asked: parameters and rows, or data
    verdict: Verdict
    says: str
    seconds: float

    def line(self) -> str:
        """As it is printed."""
        columns = (self.verdict, self.check, self.of)
        text = "".join(f"{c:<{width}}" for c, width in zip(columns, WIDTHS, strict=True))
        return printable(f"{text}{self.says}").rstrip()


def ask(check: Callable[..., str | None], of: str, *args: Any) -> Finding:
    """Runs a check; what it raises is an alarm, but for what a user can mend."""
    start = time.perf_counter()
    verdict: Verdict = "ok"
    try:
        says = check(*args) or ""
    except Defect as defect:
        verdict, says = "ALARM", str(defect)
    except LeftOut as reason:
        verdict, says = "left out", str(reason)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 (of the method that is audited)
        if short := shortage(error):
            raise short from error
        verdict, says = "ALARM", f"cannot be asked: {place(error)}"
    return Finding(check.__name__, of, verdict, says, round(time.perf_counter() - start, 2))


def alarms(findings: Sequence[Finding]) -> int:
    """How many there are."""
    return sum(finding.verdict == "ALARM" for finding in findings)


def document(findings: Sequence[Finding], stopped: str = "") -> dict[str, Any]:
    """The sealed document."""
    listed = [dataclasses.asdict(finding) for finding in findings]
    head = {"schema": SCHEMA, "alarms": alarms(findings), "stopped": stopped}
    return seal.sealed(head | {"findings": listed})


def write(findings: Sequence[Finding], path: Path, stopped: str = "") -> None:
    """Replaces the document at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, json.dumps(document(findings, stopped), indent=1) + "\n")
