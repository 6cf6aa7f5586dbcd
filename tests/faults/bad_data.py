"""Records that break the contract of `m4.data.cohort`, every kind of modality and task."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import faulty
from tests.faults.catalogue import Case

CONFIG = """
def get_config():
    return dict(
        data=dict(
            name='tests.faults.faulty', dir={folder!r}, options=dict(fault={fault!r})
        ),
        method=dict(name='tests.faults.any_kind:AnyKind'),
        optim=dict(lr=0.01),
        train=dict(steps=2, batch_size=4, select='death/auroc'),
        eval=dict(batch_size=4),
    )
"""


def cases() -> Iterator[Case]:
    """All of them."""
    for fault in faulty.names():
        field = fault.partition(":")[0]
        says = {"split": ("split",), "cohort": ("ValueError in",), "record": ("record 3",)}
        expected = says.get(field, ("split train, record 3", field))
        yield Case(fault, _built(fault), 3, expected)


def _built(fault: str) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        (folder / "x.py").write_text(CONFIG.format(folder=str(folder / "data"), fault=fault))
        return [f"--config={folder / 'x.py'}", "--mode=check", f"--workdir={folder / 'w'}"]

    return make
