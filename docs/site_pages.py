"""A hook of mkdocs: pages that live elsewhere in the repository are pages of the site, and links between all lead on.

Every page is written once and reads well in the repository, where links are paths of files. The site has the same
pages under names of its own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "datasets/bundled/README.md": "bundled-data.md",
    **{f"packages/{path.parent.name}/README.md": f"packages/{path.parent.name}.md"
       for path in sorted(ROOT.glob("packages/*/README.md"))},
}  # fmt: skip
"""Where files of the repository are on the site."""

_CODE = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages from elsewhere."""
    from mkdocs.structure.files import File

    for source, target in ELSEWHERE.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with its links as the site has them."""
    target = page.file.src_uri
    source = next((path for path, there in ELSEWHERE.items() if there == target), f"docs/{target}")
    return with_links_of_site(markdown, source, target)


def with_links_of_site(markdown: str, source: str, target: str) -> str:
    """The text of a file at `source` as a page at `target`; what the site does not have is named without a link."""

    def link(match: re.Match[str]) -> str:
        image, text, to, anchor = match[1], match[2], match[3], match[4] or ""
        if re.match(r"[a-z]+:", to):
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
        if (ROOT / there).is_dir():
            there = posixpath.join(there, "README.md")
        on_site = ELSEWHERE.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else None)
        if on_site is None:
            return text
        return f"{image}[{text}]({posixpath.relpath(on_site, posixpath.dirname(target) or '.')}{anchor})"

    parts = _CODE.split(markdown)
    return "".join(part if place % 2 else _LINK.sub(link, part) for place, part in enumerate(parts))
