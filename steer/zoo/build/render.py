"""Icons -> the shipped data set: one RGBA atlas per art style and one line of captions.jsonl per name.

The four icon sets and the CLDR names come from npm (`npm install --prefix CACHE --ignore-scripts ...`); resvg
rasterises them. The result is committed in `steer/zoo/data`, so only a person who changes `names.txt` runs this.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from pathlib import Path

from PIL import Image

from ..data import CELL, COLUMNS, DATA, NAMES, STYLES, held_out_style

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "names": "emojibase-data@17.0.0",
}
CHARS_FROM = {"fluent": "fluent-flat"}  # the chars.json of fluent-emoji is empty; its icons bear the names of -flat


def packages(cache: Path) -> dict[str, Path]:
    """Install the icon packages below `cache` (when they are not there) and return their folders by key."""
    folders = {key: cache / "node_modules" / spec.rpartition("@")[0] for key, spec in PACKAGES.items()}
    if not all(folder.is_dir() for folder in folders.values()):
        npm = shutil.which("npm")
        if npm is None:
            raise ValueError(
                "npm was not found; rendering the data set needs it: install Node.js, or keep steer/zoo/data"
            )
        command = [npm, "install", "--prefix", str(cache), "--ignore-scripts", "--no-audit", "--no-fund"]
        subprocess.run([*command, *PACKAGES.values()], check=True)
    return folders


def _key(hexcode: str) -> str:
    """Lower-case code points without the variation selector fe0f: the join key of the five packages."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _svg(icons: dict, name: str) -> str:
    icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    box = f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}"'
    return f"<svg {space} {box}>{icon['body']}</svg>"


def _raster(svg: str) -> Image.Image:
    import resvg_py  # pyright: ignore[reportMissingImports]  # of the train extra

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=CELL, height=CELL, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def icon_names(folders: dict[str, Path]) -> dict[str, dict[str, str]]:
    """style -> {hexcode key: icon name}, for the icons that really are in the set."""
    table = {}
    for style in STYLES:
        chars = json.loads((folders[CHARS_FROM.get(style, style)] / "chars.json").read_text())
        icons = json.loads((folders[style] / "icons.json").read_text())
        known = icons["icons"].keys() | icons.get("aliases", {}).keys()
        table[style] = {_key(code): name for code, name in chars.items() if name in known}
    return table


def rows(folders: dict[str, Path]) -> list[dict]:
    """One caption row per line of names.txt; raises with every name that some set does not draw."""
    groups = {g["order"]: g["key"] for g in json.loads((folders["names"] / "en/messages.json").read_text())["groups"]}
    labels = {row["label"]: row for row in json.loads((folders["names"] / "en/data.json").read_text())}
    drawn = icon_names(folders)
    wanted = [line for line in NAMES.read_text().splitlines() if line and not line.startswith("#")]
    bad = [n for n in wanted if n not in labels or any(_key(labels[n]["hexcode"]) not in drawn[s] for s in STYLES)]
    if bad:
        raise ValueError(
            f"names.txt holds names that not all of {STYLES} draw: {bad}; remove them or mend the spelling"
        )
    return [
        {
            "name": name,
            "hexcode": _key(labels[name]["hexcode"]),
            "group": groups[labels[name]["group"]],
            "tags": labels[name].get("tags", []),
            "held_out_style": held_out_style(name),
        }
        for name in wanted
    ]


def render(cache: Path, out: Path = DATA) -> None:
    """Write `captions.jsonl` and the four atlases (64-px cells, row by row in the order of names.txt) to `out`."""
    folders = packages(cache)
    table, drawn = rows(folders), icon_names(folders)
    out.mkdir(parents=True, exist_ok=True)
    (out / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table))
    for style in STYLES:
        icons = json.loads((folders[style] / "icons.json").read_text())
        atlas = Image.new("RGBA", (CELL * COLUMNS, CELL * -(-len(table) // COLUMNS)))
        for i, row in enumerate(table):
            picture = _raster(_svg(icons, drawn[style][row["hexcode"]]))
            atlas.paste(picture, (CELL * (i % COLUMNS), CELL * (i // COLUMNS)))
        atlas.save(out / f"{style}.png", optimize=True)
