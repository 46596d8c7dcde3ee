"""The readme of a package page, made from README.md at every build.

A link to a file of this project leads nowhere from there. Where ``[project.urls]`` names a
``Repository``, links are made absolute; without one the path is given in plain text, as that of a
file of the source archive.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# Code stands as it is; a link is relative where its target has no scheme.
_CODE_OR_LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)"
    r"|(?P<image>!?)\[(?P<text>[^\]]*)\]\((?![a-z]+:)(?P<target>[^)\s]+)\)",
    re.DOTALL | re.MULTILINE,
)
_NOTE = "\n\nPaths in this text, such as `docs/`, are those of the source archive.\n"


class PackagePage(MetadataHookInterface):
    """Gives the package its readme."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in ``project.readme``, which pyproject.toml calls dynamic."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        repository = metadata.get("urls", {}).get("Repository")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": package_page(text, repository),
        }


def package_page(text: str, repository: str | None) -> str:
    """Return Markdown in which no link depends on where it is read.

    Args:
        text: Markdown whose relative links start at the root of the project.
        repository: the address of the repository, whose files lie below ``blob/HEAD`` and
            ``raw/HEAD`` as on GitHub; None where there is none to link to.
    """

    def absolute(found: re.Match[str]) -> str:
        if found["code"]:
            return found["code"]
        text, target = found["text"], found["target"]
        if repository is None:
            told = target == text or target.startswith("#")
            return text if told else f"{text} ({target})"
        kind = "raw" if found["image"] else "blob"
        place = target if target.startswith("#") else f"/{kind}/HEAD/{target}"
        return f"{found['image']}[{text}]({repository.rstrip('/')}{place})"

    page = _CODE_OR_LINK.sub(absolute, text)
    return page if repository or page == text else page.rstrip() + _NOTE
