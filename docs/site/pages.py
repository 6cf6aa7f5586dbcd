"""What the site does to a page: links into the source become plain text, notebooks become a page.

A link that leads out of docs/ must lead to a file of this repository; else the build fails.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(([^)\s]+)\)")
RAN = ROOT / "build/notebooks"  # outputs, written when the tests run them


def on_page_markdown(markdown, page, config, files):
    """Called by mkdocs with the text of every page."""
    del config, files
    if page.file.src_uri == "notebooks.md":
        markdown += "".join(map(shown, sorted((ROOT / "notebooks").glob("*.ipynb"))))
    here = (ROOT / "docs" / page.file.src_uri).parent
    return LINK.sub(lambda link: outside(link, here), markdown)


def outside(link, here):
    """A link, without its target if that is a file beside docs/."""
    text, target = link.groups()
    path = (here / target.partition("#")[0]).resolve()
    if ":" in target or target.startswith("#") or path.is_relative_to(ROOT / "docs"):
        return link[0]
    if not path.exists():
        raise ValueError(f"{here}: {target} leads to nothing")
    return text


def shown(path):
    """A notebook as Markdown, with what its cells printed when they were last run."""
    ran = RAN / f"{path.stem}.json"
    outputs = json.loads(ran.read_text()) if ran.is_file() else {}
    out = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            out.append(re.sub(r"^#", "##", text, flags=re.M))
            continue
        out.append(f"```python\n{text}\n```")
        found = outputs.get(str(number), {})
        if found.get("text"):
            out.append(f"```text\n{found['text'].rstrip()}\n```")
        out += [f"![figure](data:image/png;base64,{png})" for png in found.get("figures", ())]
    return "\n\n" + "\n\n".join(out) + "\n"
