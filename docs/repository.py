"""A hook of MkDocs, by which links of the pages work in the site as they do in a repository's web view."""

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\]\(\.\./([^)#\s]+)\)")
_FOLDER = "repository"


def on_config(config: Any) -> Any:
    """Let headings have the anchors that they have in a repository's web view."""
    from pymdownx.slugs import slugify

    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add every file outside of docs/ that a page links to, as a text file."""
    from mkdocs.structure.files import File

    root = Path(config.docs_dir).parent
    linked = {to for page in files.documentation_pages() for to in _LINK.findall(page.content_string)}
    for to in sorted(linked):
        if (root / to).is_file():
            files.append(File.generated(config, f"{_FOLDER}/{to}.txt", abs_src_path=str(root / to)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point links to such files at these copies."""
    return _LINK.sub(rf"]({_FOLDER}/\1.txt)", markdown)
